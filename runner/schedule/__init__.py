"""Schedules: the learning rate as a pure function of the progress of training, so that nothing is lost on resume."""

from collections.abc import Iterable

from runner.core.reach import Begin
from runner.core.schema import Fraction, NonNegative


class Schedule:
    """Base of every schedule: lr = base lr * factor(progress, epoch), set before every step.

    Parameters
    ----------
    warmup : epochs of linear warm-up, at most the whole training (may be fractional; whole steps after rounding).
        Step i of W warm-up steps, from 0, has (i + 1) / W of the schedule's first value, and the schedule proper then
        runs over the remaining steps (gradual warm-up: Goyal et al. 2017, arXiv:1706.02677, section 2.2). Default 0.
    """

    def __init__(self, warmup: NonNegative = 0.0):
        self.warmup = warmup

    def factor(self, progress: float, epoch: float) -> float:
        """The factor before a step.

        progress: share of the training after the warm-up that is done, in [0, 1); 0 during the warm-up.
        epoch: epochs done since the start of training, the warm-up included.
        """
        raise NotImplementedError

    def begins(self, steps: int, steps_per_epoch: int) -> Iterable[Begin]:
        """What of it waits for a step, in a run of so many: see `runner.core.reach`."""
        warm = round(self.warmup * steps_per_epoch)
        yield Begin(f"the end of warmup={self.warmup:g}", warm, "the learning rate rises until the end, nothing else")

    def __call__(self, step: int, steps: int, steps_per_epoch: int) -> float:
        """The factor for step `step` (from 0) of `steps`."""
        warm = min(round(self.warmup * steps_per_epoch), steps)
        epoch = step / steps_per_epoch
        if step < warm:
            return (step + 1) / warm * self.factor(0.0, epoch)
        return self.factor((step - warm) / max(steps - warm, 1), epoch)


class Decay(Schedule):
    """Base of schedules that fall from the base learning rate to a fraction of it.

    t of T steps after the warm-up are done; the last step has t = T - 1, so that `final` itself is the limit.

    Parameters
    ----------
    final : the lowest learning rate as a fraction of the base one. Default 0.
    """

    def __init__(self, final: Fraction = 0.0, warmup: NonNegative = 0.0):
        super().__init__(warmup)
        self.final = final
