"""Weights that give every group the same part in the loss."""

import torch
from torch import Tensor

from runner.sampler import Grouped


class Weighted(Grouped):
    """The order of `shuffle`, with the weight w_i = N / (G n_g) for a sample of a group g of G that has n_g of N.

    Their mean over the training set is 1, and the weighted sum of every group's losses counts the same: re-weighting by
    inverse frequency, what `sampler=balanced` does by how often samples come. Batches differ in the sum of their
    weights, as they do in what they hold; `hook=drw` weighs by effective numbers, with weights whose mean over a batch
    is 1. What an augmentation mixes keeps the weight of its first sample.

    Parameters
    ----------
    by : class, domain or group. Default class.

    Raises
    ------
    ValueError : the data set has no such groups, or bags.
    """

    def prepare(self, split, batch_size: int, seed: int, bag: int = 1) -> None:
        super().prepare(split, batch_size, seed, bag)
        counts = torch.tensor([len(own) for own in self.members], dtype=torch.float64)
        self.weights = (len(split) / (len(counts) * counts))[self.group].to(torch.get_default_dtype())

    def about(self, epoch: int, step: int, rows: Tensor) -> dict[str, Tensor]:
        self.weights = self.weights.to(rows.device)  # once
        return {"weight": self.weights[rows]}

    def notices(self) -> list[str]:
        if (self.weights == self.weights[0]).all():
            return ["sampler=weighted: every group has as many samples, so that all weigh 1"]
        return []
