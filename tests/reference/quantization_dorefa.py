"""DoReFa-Net (Zhou et al., arXiv:1606.06160), one number at a time, with the gradients of its straight-through rule."""

import math


def quantize(r, k):
    return round((2**k - 1) * r) / (2**k - 1)


def weights(w, upstream, k):
    """Values and the gradient by w of sum upstream * value, the rounding passed straight through."""
    n = len(w)
    if k == 1:
        mean = sum(abs(v) for v in w) / n
        return [math.copysign(mean, v) for v in w], list(upstream)
    t = [math.tanh(v) for v in w]
    top = max(range(n), key=lambda i: abs(t[i]))
    values = [2 * quantize(v / (2 * abs(t[top])) + 0.5, k) - 1 for v in t]
    by_t = [u / abs(t[top]) for u in upstream]  # of t_i / max|t|
    by_t[top] -= math.copysign(1.0, t[top]) * sum(u * v for u, v in zip(upstream, t, strict=True)) / t[top] ** 2
    return values, [g * (1 - v**2) for g, v in zip(by_t, t, strict=True)]


def inputs(x, upstream, k):
    values = [quantize(min(max(v, 0.0), 1.0), k) for v in x]
    return values, [u * (0 <= v <= 1) for u, v in zip(upstream, x, strict=True)]
