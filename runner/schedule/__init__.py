"""Schedules: the learning rate as a pure function of the progress of training, so that nothing is lost on resume."""

from runner.schema import NonNegative


class Schedule:
    """Base of every schedule: lr = base lr * factor(epoch, epochs), set before every step.

    Parameters
    ----------
    warmup : epochs of linear warm-up (may be fractional). During warm-up the factor is (step + 1) / (warm-up steps)
        of its first value; the schedule proper then runs over the remaining epochs. Default 0.
    """

    def __init__(self, warmup: NonNegative = 0.0):
        self.warmup = warmup

    def factor(self, epoch: float, epochs: float) -> float:
        """epoch: epochs done since the warm-up ended, in [0, epochs); epochs: how many there are after the warm-up."""
        raise NotImplementedError

    def __call__(self, step: int, steps: int, steps_per_epoch: int) -> float:
        """The factor for step `step` (from 0) of `steps`."""
        warm = min(round(self.warmup * steps_per_epoch), steps)
        if step < warm:
            return (step + 1) / warm * self.factor(0.0, max(steps - warm, 1) / steps_per_epoch)
        return self.factor((step - warm) / steps_per_epoch, max(steps - warm, 1) / steps_per_epoch)
