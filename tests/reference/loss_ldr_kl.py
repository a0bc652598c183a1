"""LDR-KL (Zhu et al., arXiv:2112.14869) by its definition as a maximum over label weights, which the weights
proportional to exp((f_k - f_y + c_k) / lam) attain, one sample at a time; soft targets: the expectation."""

import numpy as np

SETTINGS = [
    {},
    {"margin": 0.0},
    {"lam": 0.1, "margin": 2.0},
    {"lam": 10.0, "scaling": "softplus"},
    {"lam": 3.0, "scaling": "l1"},
]


def scaled(z, scaling):
    f = np.log1p(np.exp(z)) if scaling == "softplus" else z
    return f if scaling == "none" else f / (sum(abs(fc) for fc in f) / len(f))


def hard(f, label, lam, margin):
    gains = [f[k] - f[label] + margin * (k != label) for k in range(len(f))]
    weights = np.exp((np.array(gains) - max(gains)) / lam)
    weights /= weights.sum()
    kl = sum(w * np.log(len(f) * w) for w in weights if w > 0)
    return sum(w * gain for w, gain in zip(weights, gains, strict=True)) - lam * kl


def reference(logits, y, lam=1.0, margin=0.1, scaling="none"):
    losses = []
    for z, target in zip(np.asarray(logits), y, strict=True):
        f = scaled(z, scaling)
        chances = target if np.ndim(target) else np.eye(len(z))[target]
        losses.append(sum(chances[c] * hard(f, c, lam, margin) for c in range(len(z))))
    return np.array(losses)
