"""Self-compression (Csefalvay and Imber, arXiv:2301.13142), one channel, with the gradients written out."""

import math


def weights(w, upstream, b, e):
    """Values, and the gradients of sum upstream * value by w, by b and by e, straight through the rounding."""
    half, scale, log2 = 2 ** (max(b, 0) - 1), 2.0**e, math.log(2)
    values, by_w, by_b, by_e = [], [], 0.0, 0.0
    for v, u in zip(w, upstream, strict=True):
        inner = v / scale
        clipped = min(max(inner, -half), half - 1)
        values.append(scale * round(clipped))
        by_e += u * log2 * values[-1]
        if -half < inner < half - 1:
            by_w.append(u)
            by_e -= u * log2 * v  # through 2^-e w
        else:
            by_w.append(0.0)
            by_b += u * scale * half * log2 * (-1 if inner <= -half else 1) * (b > 0)
    return values, by_w, by_b, by_e
