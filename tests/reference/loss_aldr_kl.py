"""ALDR-KL (Zhu et al., arXiv:2112.14869), one sample at a time: the sample's temperature is updated from the scores,
which are held, and then used; the inner maximum over label weights as in LDR-KL."""

import numpy as np

SETTINGS = [
    {},
    {"alpha": 1.01, "margin": 0.0},
    {"lam": 0.3, "alpha": 5.0, "margin": 2.0},
    {"lam": 10.0, "scaling": "l1"},
    {"lam": 10.0, "scaling": "softplus"},
]


def scaled(z, scaling):
    f = np.log1p(np.exp(z)) if scaling == "softplus" else np.asarray(z)
    return f if scaling == "none" else f / np.abs(f).mean()


def updated(temperature, f, lam, alpha):
    q = np.exp((f - f.max()) / temperature)
    q /= q.sum()
    kl = sum(qc * np.log(len(f) * qc) for qc in q if qc > 0)
    return lam - lam * kl / (alpha * np.log(len(f)))


def hard(f, label, temperature, margin):
    gains = [f[k] - f[label] + margin * (k != label) for k in range(len(f))]
    weights = np.exp((np.array(gains) - max(gains)) / temperature)
    weights /= weights.sum()
    kl = sum(w * np.log(len(f) * w) for w in weights if w > 0)
    return sum(w * gain for w, gain in zip(weights, gains, strict=True)) - temperature * kl


def reference(logits, y, state, index, held, lam=1.0, alpha=2.0, margin=0.1, scaling="none"):
    losses = []
    for i, z in enumerate(np.asarray(logits)):
        f = scaled(z, scaling)
        t = updated(state["temperatures"][index[i]], scaled(held[i], scaling), lam, alpha)
        a = alpha * np.log(len(f)) / lam
        chances = y[i] if np.ndim(y[i]) else np.eye(len(z))[y[i]]
        losses.append(sum(chances[c] * hard(f, c, t, margin) for c in range(len(f))) - a / 2 * (t - lam) ** 2)
    return np.array(losses)


def observed(state, logits, y, index, lam=1.0, alpha=2.0, margin=0.1, scaling="none"):
    temperatures = state["temperatures"].copy()
    for i, z in zip(index, logits, strict=True):
        temperatures[i] = updated(temperatures[i], scaled(z, scaling), lam, alpha)
    return {"temperatures": temperatures}
