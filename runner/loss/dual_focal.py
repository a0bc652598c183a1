"""Dual focal loss."""

import torch
from torch import Tensor
from torch.nn import functional as F

from runner.core.batch import Batch, Output
from runner.core.precision import wide
from runner.core.schema import NonNegative
from runner.loss import Loss, soft_targets


class DualFocal(Loss):
    """Dual focal loss (Tao, Dong & Xu, ICML 2023, arXiv:2305.13665), for calibration.

        L = -(1 - p_y + p_j)^gamma log p_y,   p_j = max {p_c : p_c < p_y}, 0 where there is none,   p = softmax(z)

    p_j, the class ranked next after the label, is differentiated too, as in the authors' code
    (Linwei94/ICML2023-DualFocalLoss). gamma = 0 is cross-entropy; where y has the smallest p, it is the focal loss.
    A soft target q, which the paper does not treat, gives the expected loss sum_c q_c L(c), as in mixup.
    Logits (..., C) and targets (...) or (..., C) give (...).

    Parameters
    ----------
    gamma : focusing exponent, to be tuned for data and model. Default 5, the authors' for a ResNet-50 on CIFAR. Their
        README lists, on CIFAR-10 and CIFAR-100: ResNet-50 5 and 5, ResNet-110 4.5 and 6.1, Wide-ResNet 2.6 and 3.9,
        DenseNet-121 5 and 3.4; ResNet-50 on Tiny-ImageNet 2.3. The default of their code, 0, is cross-entropy.
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
