"""AdaRound (arXiv:2004.10568), equations 21 to 25, one weight at a time."""

import math

ZETA, GAMMA = 1.1, -0.1


def h(v: float) -> float:
    return min(max((ZETA - GAMMA) / (1 + math.exp(-v)) + GAMMA, 0), 1)


def regulariser(v: float, beta: float) -> float:
    return 1 - abs(2 * h(v) - 1) ** beta


def slope(f, v: float, width: float = 1e-6) -> float:
    return (f(v + width) - f(v - width)) / (2 * width)
