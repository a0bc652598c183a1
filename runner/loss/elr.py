"""Early-learning regularization."""

from collections.abc import Iterable

import torch
from torch import Tensor

from runner.core.batch import Batch, Output
from runner.core.precision import wide
from runner.core.reach import Begin
from runner.core.schema import NonNegative, OpenFraction
from runner.loss import Loss, remember, soft_targets

EDGE = 1e-4  # the authors' bounds of p: 1 - <t, p> stays above it


class ELR(Loss):
    """ELR (Liu et al., NeurIPS 2020, arXiv:2007.00151), for noisy labels.

        L = -log p_y + lam * log(1 - <t, p>),   t <- beta t + (1 - beta) p / sum(p),   p = softmax(z)

    Every training sample has a target t, at first 0, which averages what the model said of it before; minimising the
    second term keeps p near it. In t and in <t, p>, but not in -log p_y, p is bounded to [1e-4, 1 - 1e-4]. The t of the
    loss has the present p in it, which is not differentiated, and is stored when the step is done. Bounds, order and
    division by the sum are those of the authors' code (shengliu66/ELR, ELR/model/loss.py); ELR+, with two networks and
    mixup, is not here. lam = 0 is cross-entropy.
    A soft target q takes the cross-entropy to it. Logits (B, C) and targets (B,) or (B, C) give (B,).

    Parameters
    ----------
    beta, lam : default 0.7 and 3, as the authors configured CIFAR-10 with symmetric noise; 0.9 and 1 for its asymmetric
        noise, 0.9 and 7 for CIFAR-100.
    classes, samples : from the data set. The targets take classes * samples numbers, in every checkpoint too.
    """

    def __init__(self, beta: OpenFraction = 0.7, lam: NonNegative = 3.0, *, classes: int, samples: int):
        super().__init__()
        self.beta = beta
        self.lam = lam
        self.register_buffer("targets", torch.zeros(samples, classes))

    def begins(self, steps: int, steps_per_epoch: int) -> Iterable[Begin]:
        yield Begin("a sample's second turn", steps_per_epoch, "its running targets have no past, only the present")

    def forward(self, out: Output, batch: Batch) -> Tensor:
        logp = torch.log_softmax(wide(out.logits), -1)
        p = logp.exp().clamp(EDGE, 1 - EDGE)
        cross_entropy = -(soft_targets(batch.y, logp) * logp).sum(-1)
        return cross_entropy + self.lam * torch.log1p(-(self.updated(p.detach(), batch) * p).sum(-1))

    def observe(self, out: Output, batch: Batch) -> None:
        p = torch.softmax(wide(out.logits), -1).clamp(EDGE, 1 - EDGE)
        remember(self.targets, batch.index, self.updated(p, batch))

    def updated(self, p: Tensor, batch: Batch) -> Tensor:
        return self.beta * self.targets[batch.index] + (1 - self.beta) * p / p.sum(-1, keepdim=True)
