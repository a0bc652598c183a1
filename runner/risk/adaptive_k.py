"""Adaptive-k: the mean of the losses below a moving threshold."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from runner.core import distributed
from runner.core.batch import Batch
from runner.core.reach import Begin
from runner.core.schema import Fraction, OpenFraction
from runner.risk import Risk
from runner.risk.mean import weighted


class AdaptiveK(Risk):
    """Leave out the samples whose loss is above a threshold made of running moments (Dedeoglu, Kesgin & Amasyali,
    Frontiers of Computer Science 2024, arXiv:2203.14165).

        m = beta1 * m + (1 - beta1) * L,   v = beta2 * v + (1 - beta2) * L^2,   L = (1/B) sum_i l_i
        risk = the mean of w_i l_i over the samples with l_i <= m / (sqrt(v) + 1e-8)

    m and v start at 0 and include the present batch. In the first `warmup` of training the risk is the mean and both
    stay 0. All of this, with 30 of 80 epochs as the warm-up, is the authors' notebook (enesdedeoglu-TR/Adaptive-k,
    MNIST.ipynb). Settled here: a batch of which nothing is kept gives 0 and no gradient (the notebook would use the
    loss before it once more), and weights multiply the kept losses but do not decide which are kept.

    m / sqrt(v) has no unit: for losses of any constant size the missing bias correction makes it 3.2 at first, 6.6
    after a dozen batches and 1 in the end, so the threshold is in effect an absolute loss of about 1 nat. A forward
    pass takes L over its (micro-)batch; the moments advance once a step, over all devices. Losses (B,), or (B, T)
    taken as B * T losses, give a scalar.

    Parameters
    ----------
    warmup : share of the run's steps with the plain mean. Default 0.375.
    beta1, beta2 : decay of the two moments. Default 0.9 and 0.999.
    """

    def __init__(self, warmup: Fraction = 0.375, beta1: OpenFraction = 0.9, beta2: OpenFraction = 0.999):
        super().__init__()
        self.warmup, self.beta1, self.beta2 = warmup, beta1, beta2
        self.register_buffer("m", torch.zeros(()))
        self.register_buffer("v", torch.zeros(()))
        self.register_buffer("active", torch.tensor(warmup == 0))

    def begins(self, steps: int, steps_per_epoch: int) -> Iterable[Begin]:
        yield Begin(f"the end of warmup={self.warmup:g}", math.ceil(self.warmup * steps), "the risk is the plain mean")

    def moments(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        m = self.beta1 * self.m + (1 - self.beta1) * mean
        return m, self.beta2 * self.v + (1 - self.beta2) * mean**2

    def forward(self, losses: Tensor, batch: Batch) -> Tensor:
        m, v = self.moments(losses.detach().mean())
        keep = ((losses <= m / (v.sqrt() + 1e-8)) | ~self.active).to(losses.dtype)
        return (keep * weighted(losses, batch)).sum() / keep.sum().clamp(min=1)

    def observe(self, losses: Tensor, batch: Batch, step: int, steps: int) -> None:
        m, v = self.moments(distributed.sum_(losses.mean()) / distributed.world)
        self.m.copy_(torch.where(self.active, m, self.m))
        self.v.copy_(torch.where(self.active, v, self.v))
        self.active.fill_(step >= self.warmup * steps)
