"""No decay."""

from runner.schedule import Schedule


class Constant(Schedule):
    """The base learning rate throughout, after the warm-up."""

    def factor(self, progress: float, epoch: float) -> float:
        return 1.0
