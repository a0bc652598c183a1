"""Label-distributionally robust loss with a KL penalty."""

from math import log
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from runner.core.batch import Batch, Output
from runner.core.precision import wide
from runner.core.schema import NonNegative, Positive
from runner.loss import Loss, log_rest

Scaling = Literal["none", "l1", "softplus"]
EXPONENTIAL = -20.0  # below it log softplus(z) = z - e^z / 2 to rounding, in fp64 too


class LDRKL(Loss):
    """LDR-KL (Zhu, Ying & Yang, ICML 2023, arXiv:2112.14869): the worst case over distributions of label weights.

        L = max_w sum_k w_k (f_k - f_y + c_k) - lam KL(w || 1/C)
          = lam log( 1/C sum_k exp((f_k - f_y + c_k) / lam) ),   c_k = margin for k != y, c_y = 0

    lam = 1 without margin is cross-entropy minus log C; lam -> 0 is the multi-class hinge max_k (f_k - f_y + c_k) of
    Crammer & Singer. f are the logits z, or z scaled:

        none      f = z
        l1        f = z / mean_c |z_c|
        softplus  f = log(1 + e^z) / mean_c log(1 + e^z_c)

    The authors' code (Optimization-AI/ICML2023_LDR) always scales: LDR-KL by softplus, ALDR-KL by l1, by softplus for
    CIFAR-100. Scaled logits have a range of C at most, for which its lam = 10 is meant. That the paper's text scales
    could not be checked; its formula does not. With lam = 1 and unscaled logits the loss is a cross-entropy of
    softmax(z) with a margin, and a run is measured by that; otherwise softmax(z) is no probability of the loss.
    A soft target q, which the paper does not treat, gives the expected loss sum_c q_c L(c), as in mixup.
    Logits (..., C) and targets (...) or (..., C) give (...).

    Parameters
    ----------
    lam : temperature. Default 1; the authors' code has 10, and 0.1, 1 and 10 in its grid.
    margin : c. Default 0.1, the authors'.
    scaling : of the logits. Default "none".
    """

    def __init__(self, lam: Positive = 1.0, margin: NonNegative = 0.1, scaling: Scaling = "none"):
        super().__init__()
        self.lam = lam
        self.margin = margin
        self.scaling = scaling

    @property
    def probabilities(self) -> bool:
        return self.scaling == "none" and self.lam == 1

    def forward(self, out: Output, batch: Batch) -> Tensor:
        f = scaled(wide(out.logits), self.scaling)
        return robust(f, batch.y, self.lam, self.margin)


def scaled(logits: Tensor, scaling: Scaling) -> Tensor:
    if scaling == "none":
        return logits
    if scaling == "softplus":  # by its logarithm: where all logits are low, so that softplus is 0, they still differ
        low = logits.clamp_max(EXPONENTIAL)
        log = torch.where(logits < EXPONENTIAL, low - low.exp() / 2, F.softplus(logits.clamp_min(EXPONENTIAL)).log())
        return logits.shape[-1] * log.softmax(-1)
    return logits / logits.abs().mean(-1, keepdim=True).clamp_min(1e-12)


def robust(f: Tensor, y: Tensor, lam: float | Tensor, margin: float | Tensor) -> Tensor:
    """The loss of scores (..., C); lam is a number or (..., 1)."""
    z = f / lam

    def cost(gap: Tensor) -> Tensor:
        return lam * (F.softplus(gap + margin / lam) - log(f.shape[-1]))

    if y.dim() == f.dim():
        return (y.to(f.dtype) * cost(log_rest(z) - z)).sum(-1)
    y = y.unsqueeze(-1)  # one label takes half the time of all
    return cost(z.scatter(-1, y, -torch.inf).logsumexp(-1, keepdim=True) - z.gather(-1, y)).squeeze(-1)
