"""Dynamic loss-based reweighting."""

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from runner.core.batch import Batch
from runner.core.reach import Begin
from runner.core.schema import Fraction, Positive
from runner.risk import Risk
from runner.risk.mean import weighted


class DynamicReweight(Risk):
    """Weigh the losses by where they are between the batch's smallest and largest (Sow et al., ICLR 2025,
    arXiv:2502.06733).

        risk = sum_i q_i l_i,   q = softmax(f(h) / r) at rest,   h_i = (2 l_i - max l - min l) / (max l - min l)

        linupper: f(h) = min(h + 1, 1)     the lower half counts less, the upper half alike
        quadratic: f(h) = 1 - h^2          the middle counts most
        extremes: f(h) = |h|               both ends count most

    As in the authors' code (sowmaster/Sample-Level-Loss-Reweighting-ICLR-2025, src/trainer.py): h is in [-1, 1], the
    minimum and maximum are those of the batch, and the weights sum to 1. In the first `warmup` of training they are
    equal, for which the code has 1,000 of 20,000 steps. Its `upper`, f = (h + 1) / 2, is not among the strategies of
    its README and left out, as is the annealing of r that the README mentions without numbers. The code gathers the
    losses of all devices; here a forward pass weighs those of its own micro-batch. As r grows, this becomes the mean.

    A sample's weight multiplies its loss before it is ranked. Losses (B,), or (B, T) taken as B * T losses, give a
    scalar.

    Parameters
    ----------
    strategy : linupper, quadratic or extremes. Default linupper, the default of the code in the authors' README.
    r : temperature. Default 0.4, that of all the authors' configurations with linupper and extremes (their `kl_reg`);
        for quadratic they have 1 for the smallest network and 0.4.
    warmup : share of the run's steps with the plain mean. Default 0.05.
    """

    ranks = True

    def __init__(
        self,
        strategy: Literal["linupper", "quadratic", "extremes"] = "linupper",
        r: Positive = 0.4,
        warmup: Fraction = 0.05,
    ):
        super().__init__()
        self.strategy, self.r, self.warmup = strategy, r, warmup
        self.register_buffer("active", torch.tensor(warmup == 0))

    def begins(self, steps: int, steps_per_epoch: int) -> Iterable[Begin]:
        yield Begin(f"the end of warmup={self.warmup:g}", math.ceil(self.warmup * steps), "the risk is the plain mean")

    def forward(self, losses: Tensor, batch: Batch) -> Tensor:
        losses = weighted(losses, batch).flatten()
        rest = losses.detach()
        low, high = rest.aminmax()
        h = (2 * rest - high - low) / (high - low).clamp(min=1e-6)
        if self.strategy == "linupper":
            score = (h + 1).clamp(max=1)
        elif self.strategy == "quadratic":
            score = 1 - h**2
        else:
            score = h.abs()
        return ((self.active * score / self.r).softmax(0).to(losses.dtype) * losses).sum()

    def observe(self, losses: Tensor, batch: Batch, step: int, steps: int) -> None:
        self.active.fill_(step >= self.warmup * steps)
