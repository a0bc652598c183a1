"""Comp-sum losses."""

import torch
from torch import Tensor
from torch.nn import functional as F

from runner.core.batch import Batch, Output
from runner.core.precision import wide
from runner.core.schema import NonNegative
from runner.loss import Loss, soft_targets

HIGHEST = 60.0  # exp of it is still far from fp32's largest number


class CompSum(Loss):
    """Comp-sum losses (Mao, Mohri & Zhong, ICML 2023, arXiv:2304.07288), which run from sum-exponential over
    cross-entropy to mean absolute error.

        L = ((1 + u)^(1 - tau) - 1) / (1 - tau),   log(1 + u) at tau = 1,   u = sum_{c != y} exp(z_c - z_y)

    As 1 + u = 1 / p_y with p = softmax(z): tau = 1 is cross-entropy; tau = 2 is 1 - p_y, half the mean absolute error
    |e_y - p|_1 (Ghosh et al., AAAI 2017, arXiv:1712.09482; loss=mae); between them lies generalized cross-entropy,
    (1 - p_y^q) / q with q = tau - 1 (Zhang & Sabuncu, NeurIPS 2018, arXiv:1805.07836; loss=gce is its q = 0.7); tau = 0
    is u itself. Below 1 the loss grows like p_y^(tau - 1), beyond every number format: from p_y^(tau - 1) = e^60 on it
    goes on linearly in log p_y.
    A soft target q, which the papers do not treat, gives the expected loss sum_c q_c L(c), as in mixup.
    Logits (..., C) and targets (...) or (..., C) give (...).

    The paper's smooth adversarial form is this with hook=smooth_adversarial.

    Parameters
    ----------
    tau : at least 0. Default 1.5, half-way between cross-entropy and mean absolute error: the paper has a family and
        no default.
    """

    def __init__(self, tau: NonNegative = 1.5):
        super().__init__()
        self.tau = tau

    def forward(self, out: Output, batch: Batch) -> Tensor:
        logp = F.log_softmax(wide(out.logits), -1)
        x = ((self.tau - 1) * logp).clamp_max(HIGHEST)
        flat = x == 0  # tau = 1 or p = 1, where expm1(x) / x is 1
        slope = torch.where(flat, 1.0, torch.expm1(x) / torch.where(flat, 1.0, x))
        return -(soft_targets(batch.y, logp) * slope * logp).sum(-1)
