"""Logit-adjusted cross-entropy."""

import torch
from torch import Tensor
from torch.nn import functional as F

from runner.core.batch import Batch, Output
from runner.core.precision import wide
from runner.core.schema import NonNegative
from runner.loss import Loss, counts, soft_targets


class LogitAdjustment(Loss):
    """Logit-adjusted softmax cross-entropy (Menon et al., ICLR 2021, arXiv:2007.07314, equation 10).

        L = -sum_c y_c log softmax(z + tau log pi)_c,   pi_c = n_c / N

    n_c is the number of training samples of class c, N of all. The bare logits z are what a run is measured by:
    with tau = 1 they estimate log-odds of a balanced class distribution. tau = 0 is cross-entropy.
    y is the one-hot target or a soft one. Logits (..., C) and targets (...) or (..., C) give (...).

    Parameters
    ----------
    tau : strength of the adjustment. Default 1, for which the paper proves consistency for the balanced error.
    class_counts : from the data set. A class without samples counts as one with one.
    """

    def __init__(self, tau: NonNegative = 1.0, *, class_counts: list[int] | None):
        super().__init__()
        self.tau = tau
        self.register_buffer("counts", counts(class_counts, "loss=logit_adjustment"), persistent=False)

    def forward(self, out: Output, batch: Batch) -> Tensor:
        logits = wide(out.logits)
        n = self.counts.to(logits.dtype)
        adjusted = logits + self.tau * torch.log(n / n.sum())
        return -(soft_targets(batch.y, adjusted) * F.log_softmax(adjusted, -1)).sum(-1)
