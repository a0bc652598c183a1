"""Dynamic loss-based reweighting, transcribed from the functions h, f and g of the authors' src/trainer.py."""

from math import exp

SETTINGS = [
    {},
    {"warmup": 0.0},
    {"warmup": 0.0, "r": 1.0},
    {"warmup": 0.0, "strategy": "quadratic", "r": 0.5},
    {"warmup": 0.0, "strategy": "extremes", "r": 0.2},
]


def gradient(losses, weight, strategy="linupper", r=0.4, warmup=0.05):
    """The weights, which are at rest, times the samples' own."""
    losses = [w * loss for loss, w in zip(losses, weight, strict=True)]
    delta, low, high = 1.0, min(losses), max(losses)
    h = [2 * delta * loss / (high - low) - delta * (high + low) / (high - low) for loss in losses]
    if strategy == "linupper":
        f = [min(x + delta, delta) for x in h]
    elif strategy == "quadratic":
        f = [1 - x**2 / delta**2 for x in h]
    else:
        f = [abs(x) for x in h]
    g = [exp((x - max(f)) / r) if warmup == 0 else 1.0 for x in f]
    return [w * x / sum(g) for w, x in zip(weight, g, strict=True)]


def reference(losses, weight, **setting):
    return sum(q * loss for q, loss in zip(gradient(losses, weight, **setting), losses, strict=True))
