"""Poly-1 focal loss."""

import torch
from torch import Tensor
from torch.nn import functional as F

from runner.core.batch import Batch, Output
from runner.core.precision import wide
from runner.core.schema import NonNegative
from runner.loss import Loss, soft_targets
from runner.loss.poly import Epsilon


class PolyFocal(Loss):
    """PolyLoss, Poly-1 form of the focal loss (Leng et al., ICLR 2022, arXiv:2204.12511), with a softmax.

        L = -(1 - p_y)^gamma log p_y + epsilon (1 - p_y)^(gamma + 1),   p = softmax(z)

    epsilon = 0 is the focal loss, gamma = 0 is Poly-1 cross-entropy. The paper uses it for 3D detection, with a
    sigmoid and an alpha weight per class; here, as in `runner.loss.focal`, p is the softmax and there is no alpha.
    A soft target q, which the paper does not treat, gives the expected loss sum_c q_c L(c), as in mixup.
    Logits (..., C) and targets (...) or (..., C) give (...).

    Parameters
    ----------
    epsilon : at least -1, as in the paper. Default 1, that of the usual port (abhuse/polyloss-pytorch): the paper gives
        none for image classification, and it has to be tuned for the task.
    gamma : focusing exponent. Default 2.
    """

    def __init__(self, epsilon: Epsilon = 1.0, gamma: NonNegative = 2.0):
        super().__init__()
        self.epsilon = epsilon
        self.gamma = gamma

    def forward(self, out: Output, batch: Batch) -> Tensor:
        logp = F.log_softmax(wide(out.logits), -1)
        rest = (-torch.expm1(logp)).clamp_min(torch.finfo(logp.dtype).tiny)  # 1 - p; the bound as in focal
        return (soft_targets(batch.y, logp) * rest**self.gamma * (self.epsilon * rest - logp)).sum(-1)
