"""Asymmetric loss for one label (Ridnik et al., arXiv:2009.14119, the authors' single-label form), one sample at a
time; soft targets: the expectation."""

import numpy as np

SETTINGS = [
    {},
    {"gamma_neg": 0.0, "label_smoothing": 0.0},
    {"gamma_pos": 0.5, "gamma_neg": 0.5, "label_smoothing": 0.6},
    {"gamma_pos": 2.0, "gamma_neg": 0.0},
]


def reference(logits, y, gamma_pos=0.0, gamma_neg=4.0, label_smoothing=0.1):
    def hard(p, true):
        total = 0.0
        for c in range(len(p)):
            smoothed = (1 - label_smoothing) * (c == true) + label_smoothing / len(p)
            weight = (1 - p[c]) ** gamma_pos if c == true else p[c] ** gamma_neg
            total -= smoothed * weight * np.log(p[c])
        return total

    losses = []
    for z, target in zip(np.asarray(logits), y, strict=True):
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        chances = target if np.ndim(target) else np.eye(len(z))[target]
        losses.append(sum(chances[c] * hard(p, c) for c in range(len(z))))
    return np.array(losses)
