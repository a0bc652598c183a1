"""Cosine decay."""

import math

from runner.core.schema import Fraction, NonNegative
from runner.schedule import Schedule


class Cosine(Schedule):
    """Cosine annealing without restarts (Loshchilov & Hutter, ICLR 2017, arXiv:1608.03983, equation 5, one period).

        factor = final + (1 - final) (1 + cos(pi t / T)) / 2

    t of T steps after the warm-up are done; the last step has t = T - 1, so that `final` itself is the limit.

    Parameters
    ----------
    final : the lowest learning rate as a fraction of the base one. Default 0. warmup : see `Schedule`. Default 0.
    """

    def __init__(self, final: Fraction = 0.0, warmup: NonNegative = 0.0):
        super().__init__(warmup)
        self.final = final

    def factor(self, progress: float, epoch: float) -> float:
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2
