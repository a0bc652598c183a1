"""Step decay."""

import math
from collections.abc import Iterable, Sequence

from runner.core.reach import Begin
from runner.core.schema import NonNegative, Positive
from runner.schedule import Schedule


class MultiStep(Schedule):
    """The learning rate times gamma at each milestone: factor = gamma ** (number of milestones reached).

    Milestones are epochs since the start of training, warm-up included. One that lies after the end of training is
    never reached: the defaults are for 200 epochs and leave a shorter training at its base learning rate.
    He et al., CVPR 2016, arXiv:1512.03385, section 4.2, divide by 10 at 32k and 48k of 64k iterations on CIFAR-10,
    that is at 1/2 and 3/4 of the training: [100, 150] of 200 epochs.

    Parameters
    ----------
    milestones : epochs, strictly increasing, none inside the warm-up (may be fractional). Default [100, 150].
    gamma : factor at each milestone. Default 0.1. warmup : see `Schedule`. Default 0.

    Raises
    ------
    ValueError
        Milestones that do not increase strictly, or one before the end of the warm-up.
    """

    def __init__(
        self, milestones: Sequence[NonNegative] = (100, 150), gamma: Positive = 0.1, warmup: NonNegative = 0.0
    ):
        super().__init__(warmup)
        self.milestones = list(milestones)
        self.gamma = gamma
        if any(b <= a for a, b in zip(self.milestones, self.milestones[1:], strict=False)):
            raise ValueError(f"milestones must increase strictly, got {self.milestones}")
        if self.milestones and self.milestones[0] < warmup:
            raise ValueError(
                f"milestones must not lie inside the warm-up of {warmup:g} epochs, got {self.milestones}; "
                "they count from the start of training"
            )

    def begins(self, steps: int, steps_per_epoch: int) -> Iterable[Begin]:
        yield from super().begins(steps, steps_per_epoch)
        for milestone in self.milestones:
            first = math.floor(milestone * steps_per_epoch)
            first += first / steps_per_epoch < milestone
            yield Begin(f"the milestone {milestone:g}", first, f"the learning rate is not multiplied by {self.gamma:g}")

    def factor(self, progress: float, epoch: float) -> float:
        return self.gamma ** sum(epoch >= milestone for milestone in self.milestones)
