"""Absolute error: the mean over a sample's targets."""

import numpy as np

SETTINGS = [{}]
TARGETS = ("real", "reals")


def reference(logits, y):
    losses = []
    for outputs, targets in zip(logits, y, strict=True):
        every = [t - z if t > z else z - t for z, t in zip(outputs, np.atleast_1d(targets), strict=True)]
        losses.append(sum(every) / len(every))
    return np.array(losses)
