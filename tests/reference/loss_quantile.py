"""Quantile loss (Koenker & Bassett 1978): level times what the output is too
low, 1 - level times what it is too high."""

import numpy as np

SETTINGS = [{}, {"level": 0.9}, {"level": 0.05}]
TARGETS = ("real", "reals")


def reference(logits, y, level=0.5):
    losses = []
    for outputs, targets in zip(logits, y, strict=True):
        every = [
            level * (t - z) if t > z else (1 - level) * (z - t)
            for z, t in zip(outputs, np.atleast_1d(targets), strict=True)
        ]
        losses.append(sum(every) / len(every))
    return np.array(losses)
