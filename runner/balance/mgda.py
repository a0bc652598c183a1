"""MGDA: the shortest vector between the gradients."""

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from runner.balance import Balance, Of


class MGDA(Balance):
    """The convex combination of the rows that is shortest (Desideri, Comptes Rendus Mathematique 2012; for networks
    Sener & Koltun, NeurIPS 2018, arXiv:1810.04650).

        gradient = J'w,   w = argmin |J'w|^2  over w >= 0 with sum w = 1

    No row's product with it is below its squared length, so that a step against it lowers all objectives alike at
    least; it vanishes where they can no longer all be lowered. Small gradients count most: an objective that has hardly
    any left stops the others, but one whose row is zero, as that of a penalty that has not begun, takes no part. Sener
    & Koltun approximate w by Frank-Wolfe steps and minimise over the gradients with respect to the shared features;
    here w is exact, and of the gradients with respect to the weights. It has the direction of the argmin over v >= 0 of
    |J'v|^2 + c (1 - sum v)^2 for any c > 0, which is least squares, solved on the CPU.

    Parameters
    ----------
    of : tasks, domains or terms. Default tasks.
    """

    replicas = True

    def __init__(self, of: Of = "tasks"):
        self.of = of

    def weigh(self, gram: Tensor, values: Tensor, draws) -> Tensor:
        return torch.from_numpy(np.stack([shortest(own) for own in gram.cpu().numpy()])).to(gram.device)


def shortest(gram: np.ndarray) -> np.ndarray:
    """(T,) of (T, T)."""
    weights, there = np.zeros(len(gram)), gram.diagonal() > 0
    if there.any():
        gram = gram[there][:, there]
        size, vectors = np.linalg.eigh(gram / gram.trace())
        root = np.sqrt(size.clip(min=0))[:, None] * vectors.T  # root' root = G
        found = nnls(np.vstack([root, np.ones(len(gram))]), np.append(np.zeros(len(gram)), 1.0))[0]
        weights[there] = found / found.sum()
    return weights
