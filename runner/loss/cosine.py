"""For losses with a head and margins of their own: a classifier of angles, and the entropy with a margin."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runner.core.precision import wide
from runner.loss import soft_targets


class Cosines(nn.Module):
    """cos theta_c = <f / ||f||, W_c / ||W_c||>: features (..., D) to (..., classes) in fp32 or better.

    The class vectors W start uniform in a cube and scaled to norm one, as in the authors' code of LDAM and of AdaFace.
    Features of norm 0 have the cosine 0 with every class.
    """

    def __init__(self, features: int, classes: int):
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.empty(classes, features).uniform_(-1, 1)))

    def forward(self, features: Tensor) -> Tensor:
        features = wide(features)
        return F.normalize(features, dim=-1) @ F.normalize(self.weight.to(features.dtype), dim=-1).T


def margin_entropy(logits: Tensor, moved: Tensor, y: Tensor) -> Tensor:
    """-log softmax of `logits` in which the label's logit is replaced by that of `moved`, both (..., C): (...).

    A soft target q gives the expected loss sum_c q_c L(c), as in mixup, and takes C^2 numbers a sample.
    """
    if y.dim() < logits.dim():
        own = soft_targets(y, logits)
        return -(own * F.log_softmax(logits + own * (moved - logits), -1)).sum(-1)
    each = logits.unsqueeze(-2) + torch.diag_embed(moved - logits)  # (..., C, C): row c is for the label c
    return -(y * F.log_softmax(each, -1).diagonal(dim1=-2, dim2=-1)).sum(-1)
