"""A classifier of angles, for losses that own their head."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runner.loss import wide


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
