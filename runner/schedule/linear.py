"""Linear decay."""

from runner.core.schema import Fraction, NonNegative
from runner.schedule import Schedule


class Linear(Schedule):
    """A straight line from the base learning rate, as in BERT (Devlin et al., NAACL 2019, arXiv:1810.04805, A.2).

        factor = 1 - (1 - final) t / T

    t of T steps after the warm-up are done; the last step has t = T - 1, so that `final` itself is the limit.

    Parameters
    ----------
    final : the lowest learning rate as a fraction of the base one. Default 0. warmup : see `Schedule`. Default 0.
    """

    def __init__(self, final: Fraction = 0.0, warmup: NonNegative = 0.0):
        super().__init__(warmup)
        self.final = final

    def factor(self, progress: float, epoch: float) -> float:
        return 1 - (1 - self.final) * progress
