"""Dual focal loss."""

import torch
from torch import Tensor
from torch.nn import functional as F

from runner.batch import Batch, Output
from runner.loss import Loss, soft_targets, wide
from runner.schema import NonNegative


class DualFocal(Loss):
    """Dual focal loss (Tao, Dong & Xu, ICML 2023, arXiv:2305.13665), for calibration.

        L = -(1 - p_y + p_j)^gamma log p_y,   p_j = max {p_c : p_c < p_y}, 0 where there is none,   p = softmax(z)

    p_j, the class ranked next after the label, is differentiated too, as in the authors' code
    (Linwei94/DualFocalLoss). gamma = 0 is cross-entropy; where y has the smallest p, it is the focal loss.
    A soft target q, which the paper does not treat, gives the expected loss sum_c q_c L(c), as in mixup.
    Logits (..., C) and targets (...) or (..., C) give (...).

    Parameters
    ----------
    gamma : focusing exponent, to be tuned for data and model. Default 5, for a ResNet-50 on CIFAR-10 or CIFAR-100 as a
        public port lists it beside 2.3 to 6.1 for others; the authors' code has 0.
    """

    def __init__(self, gamma: NonNegative = 5.0):
        super().__init__()
        self.gamma = gamma

    def forward(self, out: Output, batch: Batch) -> Tensor:
        logp = F.log_softmax(wide(out.logits), -1)
        p, order = logp.exp().sort(-1)
        steps = torch.where(p[..., 1:] > p[..., :-1], p[..., :-1], 0.0)  # the next smaller, but 0 among equals
        steps = F.pad(steps, (1, 0)).cummax(-1).values
        below = torch.zeros_like(p).scatter(-1, order, steps)
        rest = (below - torch.expm1(logp)).clamp_min(torch.finfo(logp.dtype).tiny)  # the bound as in focal
        return -(soft_targets(batch.y, logp) * rest**self.gamma * logp).sum(-1)
