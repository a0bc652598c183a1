"""Evidential loss with confusion and ignorance."""

import torch
from torch import Tensor
from torch.nn import functional as F

from runner.batch import Batch, Output
from runner.loss import Loss, soft_targets, wide
from runner.schema import NonNegative


class Evidential(Loss):
    """Evidential modelling of confusion and ignorance (Fan et al., ICCV 2023, arXiv:2309.07403, equations 6 to 13).

        pl_c = sigmoid(z_c)                               plausibility of class c
        I = prod_c (1 - pl_c)                             ignorance
        b_c = pl_c prod_{k != c} (1 - pl_k)               belief in class c alone
        U = 1 - sum_c b_c                                 uncertainty, of which U - I is confusion
        alpha_c = C b_c / (U + 1e-6) + 1                  Dirichlet parameters
        L = sum_c y_c (log sum_k alpha_k - log alpha_c) + reg sum_c y_c (pl_c - (1 - I))^2
            + kl KL(Dir(y + (1 - y) alpha) || Dir(1))

    The I of the second term is not differentiated, and the 1e-6 is there, in the authors' code; its options beyond the
    paper's equations (squared error in place of the logarithms, cross-entropy in the first five epochs) are not here.
    The weight of the last term changes with the epochs in the paper; here it is constant, as its schedule could not be
    settled: the text lets it "anneal to 0" from 0.05 and also grow, the code lets it grow from 0 to 0.05 in 500 epochs.
    From random weights it hardly learns with ten classes: a belief is a product over all of them, near 0 at first with
    its gradient. The authors' code can begin with cross-entropy for that reason; here a run does with `checkpoint=`,
    from the weights of one with loss=ce.
    The measures of a run are those of the softmax of z, which has the same order as pl.
    Logits (..., C) and targets (...) or (..., C), soft ones being y above, give (...).

    Parameters
    ----------
    reg : weight of the second term. Default 1, the paper's.
    kl : weight of the last term. Default 0.05, the paper's largest.
    """

    def __init__(self, reg: NonNegative = 1.0, kl: NonNegative = 0.05):
        super().__init__()
        self.reg = reg
        self.kl = kl

    def forward(self, out: Output, batch: Batch) -> Tensor:
        z = wide(out.logits)
        y, classes = soft_targets(batch.y, z), z.shape[-1]
        log_ignorance = F.logsigmoid(-z).sum(-1, keepdim=True)
        belief = (log_ignorance + z).exp()  # pl / (1 - pl) = exp z
        uncertainty = (1 - belief.sum(-1, keepdim=True)).clamp_min(0.0)  # in fp32 the sum may exceed 1
        alpha = classes * belief / (uncertainty + 1e-6) + 1
        likelihood = (y * (alpha.sum(-1, keepdim=True).log() - alpha.log())).sum(-1)
        plausibility = (y * (z.sigmoid() + torch.expm1(log_ignorance).detach()).square()).sum(-1)
        return likelihood + self.reg * plausibility + self.kl * divergence(y + (1 - y) * alpha)


def divergence(alpha: Tensor) -> Tensor:
    """KL(Dir(alpha) || Dir(1)) for (..., C)."""
    total = alpha.sum(-1)
    logs = torch.digamma(alpha) - torch.digamma(total).unsqueeze(-1)
    constant = torch.lgamma(torch.full_like(total, alpha.shape[-1]))
    return torch.lgamma(total) - torch.lgamma(alpha).sum(-1) - constant + ((alpha - 1) * logs).sum(-1)
