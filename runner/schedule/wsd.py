"""Warm-up, stable, decay."""

import math
from collections.abc import Iterable
from typing import Literal

from runner.core.reach import Begin
from runner.core.schema import Fraction, NonNegative
from runner.schedule import Schedule

SHAPES = {
    "sqrt": lambda t: 1 - math.sqrt(t),
    "linear": lambda t: 1 - t,
    "cosine": lambda t: (1 + math.cos(math.pi * t)) / 2,
}


class WSD(Schedule):
    """The base learning rate and a cool-down at the end (Hägele et al., NeurIPS 2024, arXiv:2405.18392, section 3).

        factor = final + (1 - final) * shape(t),   t = (step - first) / (steps - first),   first = ceil(begin * steps)
        sqrt: 1 - sqrt(t)       linear: 1 - t       cosine: (1 + cos(pi t)) / 2

    and 1 before. `begin` counts from the start of training, warm-up included; a warm-up that lasts longer delays the
    cool-down. The last step has t = 1 - 1 / (steps - first), so that `final` itself is the limit. 1 - sqrt(t) over a
    fifth of the steps is what that paper recommends.

    With the same `quantization.begin` the cool-down is fused with quantization-aware training (Dremov et al., ICLR
    2026, arXiv:2509.22935): see `runner.quantization.late`. Which shape that paper's tables have could not be read; its
    first author's study of cool-downs (arXiv:2508.01483) compares shapes.

    Parameters
    ----------
    begin : of the cool-down, as a share of all steps. Default 0.8.
    shape : `sqrt`, `linear` or `cosine`. Default `sqrt`.
    final : the lowest learning rate as a fraction of the base one. Default 0. warmup : see `Schedule`. Default 0.
    """

    def __init__(
        self,
        begin: Fraction = 0.8,
        shape: Literal["sqrt", "linear", "cosine"] = "sqrt",
        final: Fraction = 0.0,
        warmup: NonNegative = 0.0,
    ):
        super().__init__(warmup)
        self.begin, self.shape, self.final = begin, shape, final

    def factor(self, progress: float, epoch: float) -> float:
        return 1.0

    def begins(self, steps: int, steps_per_epoch: int) -> Iterable[Begin]:
        yield from super().begins(steps, steps_per_epoch)
        after = self.first(steps, steps_per_epoch) + 1  # the first step of the cool-down has the base rate still
        yield Begin(f"the cool-down of begin={self.begin:g}", after, "the learning rate does not fall")

    def first(self, steps: int, steps_per_epoch: int) -> int:
        """The step at which the cool-down begins."""
        warm = min(round(self.warmup * steps_per_epoch), steps)
        return max(math.ceil(self.begin * steps - 1e-6), warm)  # 0.1 * 30 is more than 3

    def __call__(self, step: int, steps: int, steps_per_epoch: int) -> float:
        first = self.first(steps, steps_per_epoch)
        if step < first:
            return super().__call__(step, steps, steps_per_epoch)
        return self.final + (1 - self.final) * SHAPES[self.shape]((step - first) / (steps - first))
