"""Average top-k loss."""

from typing import Annotated

import torch
from torch import Tensor

from runner.core.batch import Batch
from runner.core.schema import Range
from runner.risk import Risk, one_pass
from runner.risk.mean import weighted


class TopK(Risk):
    """The average of the k largest losses (Fan et al., NeurIPS 2017, arXiv:1705.08826).

        (1/k) sum_{j <= k} l_[j],   l_[1] >= l_[2] >= ...,   k = max(1, round(fraction * B))

    The paper takes the k largest over the training set; a step sees those of its own batch, and with
    `train.accumulate` or several devices those of each micro-batch. Weights, where the batch has them, multiply the
    losses before they are ranked. Half a loss rounds to the even k. fraction = 1 is the mean; small ones tend to the
    maximum and give noisy gradients. Losses (B,), or (B, T) taken as B * T losses, give a scalar.

    Parameters
    ----------
    fraction : share of the batch that counts, in (0, 1]. Default 0.5; the paper tunes k and has no default.
    """

    ranks = True

    def __init__(self, fraction: Annotated[float, Range(0, 1, open_low=True)] = 0.5):
        super().__init__()
        self.fraction = fraction

    def notices(self, run) -> list[str]:
        size = one_pass(run)
        k = max(1, round(self.fraction * size))
        if size > 1 and k == size:
            return [
                f"risk.fraction={self.fraction}: k is all {size} samples of a forward pass, so that this is the mean"
            ]
        if size > 1 and self.fraction * size < 0.5:
            return [f"risk.fraction={self.fraction}: of {size} samples of a forward pass k is 1, the least there is"]
        return super().notices(run)

    def forward(self, losses: Tensor, batch: Batch) -> Tensor:
        losses = weighted(losses, batch).flatten()
        if isinstance(self.fraction, Tensor):  # of replicas, each with a k of its own
            k = (self.fraction * len(losses)).round().clamp(min=1).to(losses.dtype)
            largest = torch.arange(len(losses), device=losses.device) < k
            return (losses.sort(descending=True).values * largest).sum() / k
        k = max(1, round(self.fraction * len(losses)))
        return losses.topk(k, sorted=False).values.mean()
