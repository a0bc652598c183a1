"""LSQ (Esser et al., arXiv:1902.08153), equations 1 to 5 and section 2, one number at a time."""

import numpy as np


def levels(bits, signed):
    """Q_N and Q_P."""
    return (2 ** (bits - 1), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def first_step(values, bits, signed):
    """2 <|v|> / sqrt(Q_P)."""
    return 2 * np.mean(np.abs(values)) / np.sqrt(levels(bits, signed)[1])


def quantize(v, s, bits, signed):
    """v^ (equation 2), d v^ / d v (equation 5) and d v^ / d s (equation 3)."""
    q_n, q_p = levels(bits, signed)
    ratio = v / s
    if ratio <= -q_n:
        return -q_n * s, 0.0, -q_n
    if ratio >= q_p:
        return q_p * s, 0.0, q_p
    nearest = round(ratio)  # Python and torch both round halves to even
    return nearest * s, 1.0, nearest - ratio


def gradient_of_step(values, upstream, s, bits, signed, elements):
    """g * sum of upstream times d v^ / d s, g = 1 / sqrt(elements * Q_P)."""
    total = sum(u * quantize(v, s, bits, signed)[2] for v, u in zip(values, upstream, strict=True))
    return total / np.sqrt(elements * levels(bits, signed)[1])
