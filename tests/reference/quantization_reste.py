"""ReSTE (Wu et al., arXiv:2308.06689) as its published code computes it, one number at a time."""

import math


def power(epoch, epochs, o_end):
    return 1 + (1 - math.cos(epoch / epochs * math.pi * 0.5)) * (o_end - 1)


def slope(x, o, threshold=1.5, interval=0.1):
    if abs(x) <= interval:
        return interval ** (1 / o) / interval
    if abs(x) <= threshold:
        return 1 / o * abs(x) ** ((1 - o) / o)
    return 0.0


def weights(w, upstream, o):
    """mean|w| * sign(w), and the gradient by w of sum upstream * value: through the mean too."""
    mean = sum(map(abs, w)) / len(w)
    signs = [math.copysign(1.0, v) for v in w]
    shared = sum(u * s for u, s in zip(upstream, signs, strict=True)) / len(w)
    return [mean * s for s in signs], [
        u * mean * slope(v, o) + shared * s for u, v, s in zip(upstream, w, signs, strict=True)
    ]
