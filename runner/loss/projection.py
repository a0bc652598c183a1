"""What losses of representations share: a projection that training alone sees, and a measure of features."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runner.core.precision import wide

CHUNK = 1000  # queries that are compared with the bank at a time


class Projector(nn.Sequential):
    """Linear, ReLU, linear, (B, features) -> (B, out): the head g of SimCLR (Chen et al., ICML 2020, arXiv:2002.05709,
    section 2.1), with as many hidden units as features."""

    def __init__(self, features: int, out: int):
        super().__init__(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, out))


def knn_accuracy(bank: Tensor, labels: Tensor, queries: Tensor, y: Tensor, k: int, temperature: float = 0.07) -> float:
    """The share of queries whose class has the largest weight among their k nearest in the bank (Wu et al., CVPR 2018,
    arXiv:1805.01978, section 3.4): neighbours are those of the largest cosine s, and weigh exp(s / temperature).

    bank (N, D) with labels (N,), queries (M, D) with y (M,), class ids. k is at most N.
    """
    bank, queries = (F.normalize(wide(values), dim=1) for values in (bank, queries))
    votes, right = torch.zeros(CHUNK, int(labels.max()) + 1, dtype=bank.dtype, device=bank.device), 0
    for part, target in zip(queries.split(CHUNK), y.split(CHUNK), strict=True):
        near, who = (part @ bank.T).topk(min(k, len(bank)), 1)
        votes.zero_()[: len(part)].scatter_add_(1, labels[who], (near / temperature).exp())
        right += int((votes[: len(part)].argmax(1) == target).sum())
    return right / len(y)
