"""Asymmetric loss, for one label a sample and for several."""

import torch
from torch import Tensor
from torch.nn import functional as F

from runner.core.batch import Batch, Output
from runner.core.precision import wide
from runner.core.schema import Fraction, NonNegative, OpenFraction
from runner.loss import Loss, soft_targets


class Asymmetric(Loss):
    """Asymmetric loss in the authors' form for one label (Ridnik et al., ICCV 2021, arXiv:2009.14119; its definition is
    ASLSingleLabel of Alibaba-MIIL/ASL): label-smoothed cross-entropy, focused by class.

        L = -sum_c ((1 - s) [c = y] + s / C) w_c log p_c,   p = softmax(z)
        w_y = (1 - p_y)^gamma_pos,   w_c = p_c^gamma_neg for c != y

    gamma_pos = gamma_neg = 0 is cross-entropy with label smoothing s. The weights are differentiated, as in that code.
    A soft target q, which the code does not take, gives the expected loss sum_c q_c L(c), as in mixup.
    Logits (..., C) and targets (...) or (..., C) give (...).

    Parameters
    ----------
    gamma_pos, gamma_neg : focusing exponents. Default 0 and 4, the authors'.
    label_smoothing : s, in [0, 1). Default 0.1, the authors'.
    """

    def __init__(self, gamma_pos: NonNegative = 0.0, gamma_neg: NonNegative = 4.0, label_smoothing: OpenFraction = 0.1):
        super().__init__()
        self.gamma_pos = gamma_pos
        self.gamma_neg = gamma_neg
        self.label_smoothing = label_smoothing

    def forward(self, out: Output, batch: Batch) -> Tensor:
        logp = F.log_softmax(wide(out.logits), -1)
        q = soft_targets(batch.y, logp)
        rest = (-torch.expm1(logp)).clamp_min(torch.finfo(logp.dtype).tiny)  # 1 - p; the bound as in focal
        share = self.label_smoothing / logp.shape[-1]
        label = q * (1 - self.label_smoothing + share) * rest**self.gamma_pos
        others = (1 - q) * share * torch.exp(self.gamma_neg * logp)
        return -((label + others) * logp).sum(-1)


class AsymmetricMultilabel(Loss):
    """Asymmetric loss (Ridnik et al., ICCV 2021, arXiv:2009.14119) for several labels a sample.

        L = -sum_c ( y_c (1 - p_c)^gamma_pos log p_c + (1 - y_c) m_c^gamma_neg log(1 - m_c) )
        p = sigmoid(z),   m = max(p - shift, 0)

    gamma_pos = gamma_neg and shift = 0 is the sigmoid focal loss, and with both 0 binary cross-entropy. The sum goes
    over the labels of a sample; the authors' code sums over the batch too, so that its learning rates belong to a
    gradient `train.batch_size` times as large. The weights (1 - p_c)^gamma_pos and m_c^gamma_neg have no gradient, as
    in the authors' class by default and in their training script.
    Logits (..., C) and targets (..., C) in [0, 1] give (...).

    Parameters
    ----------
    gamma_pos, gamma_neg : focusing exponents. Default 0 and 4, those of the paper and of the authors' training script
        for MS-COCO; their class alone has 1 and 4.
    shift : probability below which a negative label costs nothing. Default 0.05, the authors'.
    stop_gradient : whether the gradient stops at the weights. Default true; false differentiates all of L, as the
        sigmoid focal loss does.
    """

    tasks = ("multilabel",)

    def __init__(
        self,
        gamma_pos: NonNegative = 0.0,
        gamma_neg: NonNegative = 4.0,
        shift: Fraction = 0.05,
        stop_gradient: bool = True,
    ):
        super().__init__()
        self.gamma_pos = gamma_pos
        self.gamma_neg = gamma_neg
        self.shift = shift
        self.stop_gradient = stop_gradient

    def forward(self, out: Output, batch: Batch) -> Tensor:
        z = wide(out.logits)
        y, tiny = batch.y.to(z.dtype), torch.finfo(z.dtype).tiny  # the bound as in focal
        log_shift = torch.as_tensor(self.shift, dtype=z.dtype, device=z.device).log()
        log_negative = torch.logaddexp(F.logsigmoid(-z), log_shift).clamp_max(0.0)  # log min(1 - p + shift, 1)
        at = z.detach() if self.stop_gradient else z
        negative = (torch.sigmoid(at) - self.shift).clamp_min(tiny) ** self.gamma_neg
        positive = torch.sigmoid(-at).clamp_min(tiny) ** self.gamma_pos
        return -(y * positive * F.logsigmoid(z) + (1 - y) * negative * log_negative).sum(-1)
