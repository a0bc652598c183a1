"""Cosine decay."""

import math

from runner.schedule import Decay


class Cosine(Decay):
    """Cosine annealing without restarts (Loshchilov & Hutter, ICLR 2017, arXiv:1608.03983, equation 5, one period); see
    `Decay`.

        factor = final + (1 - final) (1 + cos(pi t / T)) / 2
    """

    def factor(self, progress: float, epoch: float) -> float:
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2
