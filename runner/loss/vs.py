"""Vector-scaling loss."""

import torch
from torch import Tensor
from torch.nn import functional as F

from runner.core.batch import Batch, Output
from runner.core.precision import wide
from runner.core.schema import NonNegative
from runner.loss import Loss, counts, soft_targets


class VectorScaling(Loss):
    """VS loss (Kini et al., NeurIPS 2021, arXiv:2103.01550) with the paper's adjustments by class counts.

        L = -sum_c y_c log softmax(Delta z + iota)_c,   Delta_c = (n_c / n_max)^gamma,   iota_c = tau log(n_c / N)

    n_c is the number of training samples of class c, n_max that of the largest, N of all. gamma = 0 is
    logit adjustment, gamma = tau = 0 cross-entropy, tau = 0 the CDT loss. The weights omega_y of the paper
    come from hook=drw. The bare logits z are what a run is measured by; with gamma = 0 their softmax is that of a
    balanced class distribution, otherwise they are scores.
    y is the one-hot target or a soft one. Logits (..., C) and targets (...) or (..., C) give (...).

    Parameters
    ----------
    gamma, tau : default 0.3 and 1, as in the authors' code (orparask/VS-Loss). Both have to be tuned: a public port
        (TeamOfProfGuo/GLMC) has 0.15 and 1.25 for long-tailed CIFAR-10.
    class_counts : from the data set. A class without samples counts as one with one.
    """

    def __init__(self, gamma: NonNegative = 0.3, tau: NonNegative = 1.0, *, class_counts: list[int] | None):
        super().__init__()
        self.gamma = gamma
        self.tau = tau
        self.register_buffer("counts", counts(class_counts, "loss=vs"), persistent=False)

    @property
    def probabilities(self) -> bool:
        return self.gamma == 0

    def forward(self, out: Output, batch: Batch) -> Tensor:
        logits = wide(out.logits)
        n = self.counts.to(logits.dtype)
        adjusted = (n / n.max()) ** self.gamma * logits + self.tau * torch.log(n / n.sum())
        return -(soft_targets(batch.y, adjusted) * F.log_softmax(adjusted, -1)).sum(-1)
