"""AdaFace (Kim et al., arXiv:2204.00964), one sample at a time; soft targets: the expectation over the label. The
logits are s times the cosines."""

import numpy as np

COUPLED = True
SETTINGS = [{}, {"t_alpha": 1.0}, {"m": 0.5, "h": 0.1, "s": 10.0, "t_alpha": 0.7}, {"m": 0.0}]


def quality(state, features, t_alpha):
    norms = np.clip(np.sqrt((features**2).sum(1)), 0.001, 100)
    mean = t_alpha * norms.mean() + (1 - t_alpha) * state["mean"]
    std = t_alpha * np.sqrt(((norms - norms.mean()) ** 2).sum() / (len(norms) - 1)) + (1 - t_alpha) * state["std"]
    return norms, mean, std


def observed(state, logits, y, index, features, m=0.4, h=0.333, s=64.0, t_alpha=0.01):
    _, mean, std = quality(state, features, t_alpha)
    return {"mean": mean, "std": std}


def reference(logits, y, state, features, m=0.4, h=0.333, s=64.0, t_alpha=0.01):
    norms, mean, std = quality(state, features, t_alpha)

    def hard(cosines, label, k):
        angles = np.arccos(np.clip(cosines, -1 + 1e-3, 1 - 1e-3))
        angles[label] = np.clip(angles[label] - m * k, 1e-3, np.pi - 1e-3)
        z = np.cos(angles)
        z[label] -= m + m * k
        return np.log(np.exp(s * (z - z[label])).sum())

    losses = []
    for row, target, norm in zip(np.asarray(logits), y, norms, strict=True):
        k = np.clip(h * (norm - mean) / (std + 1e-3), -1, 1)
        if np.ndim(target):
            losses.append(sum(target[c] * hard(row / s, c, k) for c in range(len(row))))
        else:
            losses.append(hard(row / s, target, k))
    return np.array(losses)
