"""Aligned-MTL: the principal components of the gradients made equally long."""

from typing import Literal

import torch
from torch import Tensor

from runner.balance import Balance, Of


class AlignedMTL(Balance):
    """Independent component alignment (Senushkin et al., CVPR 2023, arXiv:2305.19000, algorithm 1).

        G = J J' = V diag(l) V',   gradient = J' B 1/T,   B = sqrt(s) V diag(l)^(-1/2) V'

    over the r components with l above T eps max(l): B' J has r singular values, all of them sqrt(s). As in torchjd,
    whose code is adapted from the authors', which is gone; eps is that of the rows' type. Where all rows are zero, B is
    the identity.

    Parameters
    ----------
    of : tasks, domains or terms. Default tasks.
    scale : s is the smallest of the r components' l (`min`, the paper's and the default), their median, or their mean
        (`rmse`).
    """

    replicas = True

    def __init__(self, of: Of = "tasks", scale: Literal["min", "median", "rmse"] = "min"):
        self.of, self.scale = of, scale

    def weigh(self, gram: Tensor, values: Tensor, draws) -> Tensor:
        count = gram.shape[-1]
        size, vectors = torch.linalg.eigh(gram)  # ascending
        kept = size > size[..., -1:] * count * torch.finfo(values.dtype).eps
        rank = kept.sum(-1, keepdim=True)
        if self.scale == "rmse":
            scale = (size * kept).sum(-1, keepdim=True) / rank
        else:  # torch's median of r is the lower one
            place = count - rank + ((rank - 1) // 2 if self.scale == "median" else 0)
            scale = size.gather(-1, place.clamp(max=count - 1))
        root = torch.where(kept, (scale / size.where(kept, 1.0)).sqrt(), 0.0)
        weights = (vectors * root.unsqueeze(-2) @ vectors.mT).mean(-1)
        return torch.where(rank > 0, weights, 1 / count)
