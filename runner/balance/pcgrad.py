"""PCGrad: gradients lose what points against another."""

import numpy as np
import torch
from torch import Tensor

from runner.balance import Balance, Of


class PCGrad(Balance):
    """Project conflicting gradients (Yu et al., NeurIPS 2020, arXiv:2001.06782, algorithm 1).

        p_i = g_i;  for every j != i in random order:  p_i = p_i - (p_i . g_j) / |g_j|^2 g_j  where p_i . g_j < 0
        gradient = (1/T) sum_i p_i

    The paper adds the p_i up, which is T times as long. The order is drawn anew for every i, as in the paper, and keyed
    by seed and step, so that all passes of a step project in one order. Everything is done on the weights of the rows.

    Parameters
    ----------
    of : tasks, domains or terms. Default tasks.
    """

    replicas = True

    def __init__(self, of: Of = "tasks"):
        self.of = of

    def weigh(self, gram: Tensor, values: Tensor, draws) -> Tensor:
        count = gram.shape[-1]
        orders = np.stack([[draw.permutation(count) for _ in range(count)] for draw in draws])
        orders = torch.from_numpy(orders).to(gram.device)  # (K, T, T): of run k and row i the rows in turn
        weights = torch.eye(count, dtype=gram.dtype, device=gram.device).repeat(len(gram), 1, 1)
        own = torch.arange(count, device=gram.device).unsqueeze(-1)
        for j in orders.unbind(-1):
            j = j.unsqueeze(-1)  # (K, T, 1)
            product = (weights @ gram).gather(-1, j)
            length = gram.diagonal(dim1=-2, dim2=-1).unsqueeze(-2).expand_as(weights).gather(-1, j)
            against = (product < 0) & (length > 0) & (j != own)
            weights = weights.scatter_add(-1, j, torch.where(against, -product / length, 0.0))
        return weights.mean(-2)
