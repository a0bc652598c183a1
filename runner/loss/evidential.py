"""Evidential loss with confusion and ignorance."""

from collections.abc import Iterable
from math import lgamma

import torch
from torch import Tensor
from torch.nn import functional as F

from runner.core.batch import Batch, Output
from runner.core.precision import wide
from runner.core.reach import Begin
from runner.core.schema import Natural, NonNegative
from runner.loss import Loss, soft_targets


class Evidential(Loss):
    """Evidential modelling of confusion and ignorance (Fan et al., ICCV 2023, arXiv:2309.07403, equations 6 to 13).

        pl_c = sigmoid(z_c)                               plausibility of class c
        I = prod_c (1 - pl_c)                             ignorance
        b_c = pl_c prod_{k != c} (1 - pl_k)               belief in class c alone
        U = 1 - sum_c b_c                                 uncertainty, of which U - I is confusion
        alpha_c = C b_c / (U + 1e-6) + 1                  Dirichlet parameters
        L = sum_c y_c (log sum_k alpha_k - log alpha_c) + reg sum_c y_c (pl_c - (1 - I))^2
            + kl KL(Dir(y + (1 - y) alpha) || Dir(1))
            + [epoch < begin] (1/C) sum_c cross-entropy of (pl_c, 1 - pl_c) with (y_c, 1 - y_c)

    The I of the second term is not differentiated, and the 1e-6 is there, in the authors' code (FlexibleLoss). So is
    the last term, which the paper does not have: from random weights and with ten classes a belief is a product over
    all of them, near 0 with its gradient, and hardly anything is learned without it. Squared error in place of the
    logarithms, an option of that code, is not here. The weight of the KL term changes with the epochs in the paper;
    here it is constant, as its schedule could not be settled: the text lets it "anneal to 0" from 0.05 and also grow,
    the code lets it grow from 0 to 0.05 in 500 epochs.
    The measures of a run are of the mean of the Dirichlet distribution, alpha_c / sum_k alpha_k, the probability whose
    logarithm the first term takes; its order is that of pl and of z.
    Logits (..., C) and targets (...) or (..., C), soft ones being y above, give (...).

    Parameters
    ----------
    reg : weight of the second term. Default 1, the paper's.
    kl : weight of the third term. Default 0.05, the paper's largest.
    begin : so many first epochs have the last term. Default 5, the authors'; 0: never.
    """

    def __init__(self, reg: NonNegative = 1.0, kl: NonNegative = 0.05, begin: Natural = 5):
        super().__init__()
        self.reg = reg
        self.kl = kl
        self.begin = begin

    def begins(self, steps: int, steps_per_epoch: int) -> Iterable[Begin]:
        what = f"the end of the first epochs (begin={self.begin})"
        yield Begin(what, self.begin * steps_per_epoch, "cross-entropy is added in every step")

    def log_probabilities(self, logits: Tensor) -> Tensor:
        return self.opinion(wide(logits))[0].log()

    def opinion(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """alpha (..., C) and log I (..., 1)."""
        log_rest = F.logsigmoid(-z)
        log_ignorance = log_rest.sum(-1, keepdim=True)
        top = soft_targets(z.argmax(-1), z) > 0
        # the largest belief may be nearly 1, and U what is left of it: by its logarithm, which does not cancel
        log_top = torch.where(top, F.logsigmoid(z), log_rest).sum(-1, keepdim=True)
        others = (log_ignorance + z).masked_fill(top, -torch.inf).exp()  # pl / (1 - pl) = exp z
        belief = torch.where(top, log_top.exp(), others)
        rest = -torch.expm1(log_top) - others.sum(-1, keepdim=True)
        uncertainty = rest.clamp_min(0.0)  # it is negative by rounding alone
        return z.shape[-1] * belief / (uncertainty + 1e-6) + 1, log_ignorance

    def forward(self, out: Output, batch: Batch) -> Tensor:
        z = wide(out.logits)
        y = soft_targets(batch.y, z)
        alpha, log_ignorance = self.opinion(z)
        likelihood = (y * (alpha.sum(-1, keepdim=True).log() - alpha.log())).sum(-1)
        plausibility = (y * (z.sigmoid() + torch.expm1(log_ignorance).detach()).square()).sum(-1)
        loss = likelihood + self.reg * plausibility + self.kl * divergence(y + (1 - y) * alpha)
        if batch.epoch < self.begin:
            loss = loss + F.binary_cross_entropy_with_logits(z, y, reduction="none").mean(-1)
        return loss


def divergence(alpha: Tensor) -> Tensor:
    """KL(Dir(alpha) || Dir(1)) for (..., C).

    Computed in fp64 where the device has it: where alpha is in the millions, terms of 1e8 leave a difference of ten.
    """
    exact = alpha if alpha.device.type == "mps" else alpha.double()
    total = exact.sum(-1)
    logs = torch.digamma(exact) - torch.digamma(total).unsqueeze(-1)
    found = torch.lgamma(total) - torch.lgamma(exact).sum(-1) - lgamma(alpha.shape[-1])
    return (found + ((exact - 1) * logs).sum(-1)).to(alpha.dtype)
