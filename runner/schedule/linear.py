"""Linear decay."""

from runner.schedule import Decay


class Linear(Decay):
    """A straight line from the base learning rate, as in BERT (Devlin et al., NAACL 2019, arXiv:1810.04805, A.2); see
    `Decay`.

        factor = 1 - (1 - final) t / T
    """

    def factor(self, progress: float, epoch: float) -> float:
        return 1 - (1 - self.final) * progress
