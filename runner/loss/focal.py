"""Focal loss."""

import torch
from torch import Tensor
from torch.nn import functional as F

from runner.core.batch import Batch, Output
from runner.core.precision import wide
from runner.core.schema import NonNegative
from runner.loss import Loss, soft_targets


class Focal(Loss):
    """Focal loss (Lin et al., ICCV 2017, arXiv:1708.02002, equation 4) in its softmax form.

        L = -(1 - p_y)^gamma log p_y,   p = softmax(z)

    gamma = 0 is cross-entropy. The paper writes the binary form, with p_t = p or 1 - p of a sigmoid, and leaves the
    extension to several classes to the reader; the softmax form is the usual one, as in Mukhoti et al., NeurIPS 2020,
    arXiv:2002.09437. There is no alpha: the paper's alpha_t (equation 5) weighs foreground against background, and with
    C classes it would be C class weights, of which one shared constant only rescales the learning rate.
    A soft target q, which the paper does not treat, gives the expected loss sum_c q_c L(c), as in mixup.
    Logits (..., C) and targets (...) or (..., C) give (...).

    Parameters
    ----------
    gamma : focusing exponent. Default 2, the paper's best.
    """

    def __init__(self, gamma: NonNegative = 2.0):
        super().__init__()
        self.gamma = gamma

    def forward(self, out: Output, batch: Batch) -> Tensor:
        logp = F.log_softmax(wide(out.logits), -1)
        # 1 - p, kept off 0 for where p rounds to 1: there x^gamma with gamma < 1 has an infinite slope
        rest = (-torch.expm1(logp)).clamp_min(torch.finfo(logp.dtype).tiny)
        return -(soft_targets(batch.y, logp) * rest**self.gamma * logp).sum(-1)
