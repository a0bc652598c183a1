"""Poly-1 focal loss (Leng et al., arXiv:2204.12511) with a softmax, one sample at a time; soft targets: the
expectation."""

import numpy as np

SETTINGS = [
    {},
    {"epsilon": 0.0, "gamma": 0.5},
    {"epsilon": -1.0, "gamma": 0.0},
    {"epsilon": 3.0, "gamma": 1.5},
]


def reference(logits, y, epsilon=1.0, gamma=2.0):
    losses = []
    for z, target in zip(np.asarray(logits), y, strict=True):
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        loss = 0.0
        for c in range(len(z)):
            chance = target[c] if np.ndim(target) else float(c == target)
            focal = -((1 - p[c]) ** gamma) * np.log(p[c])
            loss += chance * (focal + epsilon * (1 - p[c]) ** (gamma + 1))
        losses.append(loss)
    return np.array(losses)
