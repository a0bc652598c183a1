"""Poly-1 cross-entropy."""

from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from runner.core.batch import Batch, Output
from runner.core.precision import wide
from runner.core.schema import OpenFraction, Range
from runner.loss import Loss, soft_targets

Epsilon = Annotated[float, Range(-1)]  # below -1 the first coefficient of the series, 1 + epsilon, would be negative


class Poly(Loss):
    """PolyLoss, Poly-1 form (Leng et al., ICLR 2022, arXiv:2204.12511): the first coefficient of the series of
    cross-entropy in powers of (1 - p_y) is 1 + epsilon instead of 1.

        L = -log p_y + epsilon (1 - p_y),   p = softmax(z)

    With a soft or smoothed target q it is sum_c q_c (-log p_c + epsilon (1 - p_c)), with q = (1 - s) y + s / C, as in
    the paper's pseudo-code for smoothed labels. epsilon = 0 is cross-entropy.
    Logits (..., C) and targets (...) or (..., C) give (...).

    Parameters
    ----------
    epsilon : at least -1, as in the paper. It has to be tuned for the task. Default 2, the paper's value for ImageNet
        classification; ports often have 1, and -1 is its value for Mask R-CNN on COCO (both as optax quotes them).
    label_smoothing : s, in [0, 1). Default 0.
    """

    def __init__(self, epsilon: Epsilon = 2.0, label_smoothing: OpenFraction = 0.0):
        super().__init__()
        self.epsilon = epsilon
        self.label_smoothing = label_smoothing

    def forward(self, out: Output, batch: Batch) -> Tensor:
        logp = F.log_softmax(wide(out.logits), -1)
        q = (1 - self.label_smoothing) * soft_targets(batch.y, logp) + self.label_smoothing / logp.shape[-1]
        return (q * (self.epsilon * -torch.expm1(logp) - logp)).sum(-1)
