"""Asymmetric loss (Ridnik et al., arXiv:2009.14119), one label of one sample at a time; the focusing weights are of the
logits at rest where the gradient stops at them."""

import numpy as np

TARGETS = ("multihot",)
SETTINGS = [
    {},
    {"gamma_pos": 1.0},
    {"gamma_pos": 1.0, "stop_gradient": False},
    {"gamma_neg": 0.0, "shift": 0.0},
    {"gamma_pos": 2.0, "gamma_neg": 2.0, "shift": 0.0, "stop_gradient": False},
    {"gamma_pos": 0.5, "gamma_neg": 0.5, "shift": 0.3},
]


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def reference(logits, y, held, gamma_pos=0.0, gamma_neg=4.0, shift=0.05, stop_gradient=True):
    losses = []
    for z, rest, labels in zip(logits, held if stop_gradient else logits, y, strict=True):
        total = 0.0
        for zc, at, label in zip(z, rest, labels, strict=True):
            if label == 1:
                total -= sigmoid(-at) ** gamma_pos * np.log(sigmoid(zc))
            else:
                total -= max(sigmoid(at) - shift, 0) ** gamma_neg * np.log(min(sigmoid(-zc) + shift, 1))
        losses.append(total)
    return np.array(losses)
