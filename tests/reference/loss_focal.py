"""Softmax focal loss (Lin et al., arXiv:1708.02002, equation 4), one sample at a time; soft targets: the
expectation."""

import numpy as np

SETTINGS = [{}, {"gamma": 0.0}, {"gamma": 0.5}, {"gamma": 5.0}]


def reference(logits, y, gamma=2.0):
    losses = []
    for z, target in zip(np.asarray(logits), y, strict=True):
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        loss = 0.0
        for c in range(len(z)):
            chance = target[c] if np.ndim(target) else float(c == target)
            loss += chance * -((1 - p[c]) ** gamma) * np.log(p[c])
        losses.append(loss)
    return np.array(losses)
