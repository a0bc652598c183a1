"""StableMax cross-entropy (Prieto et al., arXiv:2501.04697) from s, one sample at a time; soft targets: -q log p."""

import numpy as np

SETTINGS = [{}]


def s(x):
    return x + 1 if x >= 0 else 1 / (1 - x)


def reference(logits, y):
    losses = []
    for z, target in zip(np.asarray(logits), y, strict=True):
        total = sum(s(x) for x in z)
        chances = target if np.ndim(target) else np.eye(len(z))[target]
        losses.append(-sum(chance * np.log(s(x) / total) for chance, x in zip(chances, z, strict=True)))
    return np.array(losses)
