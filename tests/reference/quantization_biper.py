"""BiPer (Vargas et al., arXiv:2404.01278) as its published code computes it, one number at a time."""

import math

import numpy as np


def weights(w, upstream, alpha, frequency, stage):
    """One channel: values, and the gradients of sum upstream * value by w and by alpha."""
    waves = [math.sin(frequency * v) for v in w]
    values = waves if stage == 1 else [math.copysign(1.0, v) for v in waves]
    by_w = [u * alpha * frequency * math.cos(frequency * v) for u, v in zip(upstream, w, strict=True)]
    return [alpha * v for v in values], by_w, sum(u * v for u, v in zip(upstream, values, strict=True))


def penalty(layers, tau, frequency):
    return sum(tau * np.mean([0.5 - 0.5 * math.cos(2 * frequency * v) for v in w]) for w in layers)


def inputs(x, upstream):
    """One sample: signs, and the gradient of sum upstream * sign by x, through a = x / sqrt(var + 1e-5)."""
    n = len(x)
    mean = sum(x) / n
    root = math.sqrt(sum((v - mean) ** 2 for v in x) / (n - 1) + 1e-5)
    by_a = [u * max(2 - abs(2 * v / root), 0.0) for u, v in zip(upstream, x, strict=True)]
    shared = sum(g * v for g, v in zip(by_a, x, strict=True)) / root**3 / (n - 1)
    return [math.copysign(1.0, v) for v in x], [g / root - shared * (v - mean) for g, v in zip(by_a, x, strict=True)]
