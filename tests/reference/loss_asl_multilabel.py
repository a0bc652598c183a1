"""Asymmetric loss (Ridnik et al., arXiv:2009.14119), one label of one sample at a time."""

import numpy as np

TARGETS = ("multihot",)
SETTINGS = [
    {},
    {"gamma_pos": 0.0},
    {"gamma_pos": 0.0, "gamma_neg": 0.0, "shift": 0.0},
    {"gamma_pos": 2.0, "gamma_neg": 2.0, "shift": 0.0},
    {"gamma_pos": 0.5, "gamma_neg": 0.5, "shift": 0.3},
]


def reference(logits, y, gamma_pos=1.0, gamma_neg=4.0, shift=0.05):
    losses = []
    for z, labels in zip(np.asarray(logits, dtype=np.float64), y, strict=True):
        total = 0.0
        for zc, label in zip(z, labels, strict=True):
            p = 1 / (1 + np.exp(-zc))
            if label == 1:
                total -= (1 - p) ** gamma_pos * np.log(p)
            else:
                shifted = max(p - shift, 0.0)
                total -= shifted**gamma_neg * np.log(1 - shifted)
        losses.append(total)
    return np.array(losses)
