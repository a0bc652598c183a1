"""Adaptive label-distributionally robust loss with a KL penalty."""

from collections.abc import Iterable
from math import log
from typing import Annotated

import torch
from torch import Tensor

from runner.core.batch import Batch, Output
from runner.core.precision import wide
from runner.core.reach import Begin
from runner.core.schema import NonNegative, Positive, Range
from runner.loss import Loss, remember
from runner.loss.ldr_kl import Scaling, robust, scaled


class ALDRKL(Loss):
    """ALDR-KL (Zhu, Ying & Yang, ICML 2023, arXiv:2112.14869): LDR-KL with a temperature for every training sample,
    lower for those the model is sure of.

        L = max_w,t sum_k w_k (f_k - f_y + c_k) - t KL(w || 1/C) - a / 2 (t - lam)^2,   a = alpha log C / lam

    solved in turns, one turn a step: with q = softmax(f / t) and the sample's t of the step before,

        t <- lam (1 - KL(q || 1/C) / (alpha log C)),   then   L = LDR-KL at t  - a / 2 (t - lam)^2

    Every t starts at lam. The t of the loss has the present f in it, which is not differentiated there, and is stored
    when the step is done. Turn, start and the missing margin in q are those of the authors' code
    (Optimization-AI/ICML2023_LDR, ALDRLoss_V1), which adds 1e-5 to q against log 0; here q log q is exact. c, the
    scaling of the logits, soft targets and what a run is measured by are those of `runner.loss.ldr_kl`.
    Logits (B, C) and targets (B,) or (B, C) give (B,).

    Parameters
    ----------
    lam : the temperature to begin with and the largest. Default 1; the authors' code has 10 with scaled logits.
    alpha : above 1: t stays at least lam (1 - 1 / alpha). Default 2, the authors'.
    margin : c. Default 0.1, the authors'.
    scaling : of the logits. Default "none"; the authors' is "l1", and "softplus" for CIFAR-100.
    samples : from the data set.
    """

    def __init__(
        self,
        lam: Positive = 1.0,
        alpha: Annotated[float, Range(1, open_low=True)] = 2.0,
        margin: NonNegative = 0.1,
        scaling: Scaling = "none",
        *,
        samples: int,
    ):
        super().__init__()
        self.lam = lam
        self.alpha = alpha
        self.margin = margin
        self.scaling = scaling
        self.register_buffer("temperatures", torch.full((samples,), float(lam)))

    def begins(self, steps: int, steps_per_epoch: int) -> Iterable[Begin]:
        yield Begin("a sample's second turn", steps_per_epoch, "every temperature is one turn from lam")

    @property
    def probabilities(self) -> bool:
        return self.scaling == "none" and self.lam == 1

    def forward(self, out: Output, batch: Batch) -> Tensor:
        f = scaled(wide(out.logits), self.scaling)
        t = self.updated(f.detach(), batch)
        penalty = self.alpha * log(f.shape[-1]) / self.lam / 2 * (t - self.lam) ** 2
        return robust(f, batch.y, t.unsqueeze(-1), self.margin) - penalty

    def observe(self, out: Output, batch: Batch) -> None:
        remember(self.temperatures, batch.index, self.updated(scaled(wide(out.logits), self.scaling), batch))

    def updated(self, f: Tensor, batch: Batch) -> Tensor:
        logq = torch.log_softmax(f / self.temperatures[batch.index].to(f.dtype).unsqueeze(-1), -1)
        share = 1 + (logq.exp() * logq).sum(-1) / log(f.shape[-1])  # KL(q || 1/C) / log C, in [0, 1]
        return self.lam * (1 - share / self.alpha)
