"""Huber loss (Huber 1964) by its two branches."""

import numpy as np

SETTINGS = [{}, {"delta": 0.3}, {"delta": 5.0}]
TARGETS = ("real", "reals")


def reference(logits, y, delta=1.0):
    losses = []
    for outputs, targets in zip(logits, y, strict=True):
        every = [
            (t - z) ** 2 / 2 if abs(t - z) <= delta else delta * abs(t - z) - delta**2 / 2
            for z, t in zip(outputs, np.atleast_1d(targets), strict=True)
        ]
        losses.append(sum(every) / len(every))
    return np.array(losses)
