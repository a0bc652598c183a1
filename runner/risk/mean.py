"""The mean of the losses."""

from torch import Tensor

from runner.core.batch import Batch
from runner.risk import Risk


def weighted(losses: Tensor, batch: Batch) -> Tensor:
    """The losses, each multiplied by its sample's weight where the batch has weights. Trailing axes broadcast."""
    if batch.weight is None:
        return losses
    return losses * batch.weight.reshape(batch.weight.shape + (1,) * (losses.dim() - batch.weight.dim()))


class Mean(Risk):
    """The empirical risk: (1/B) sum_i w_i l_i, with w_i = 1 where the batch has no weights.

    It divides by the number of losses and not by the sum of the weights: weights of mean one keep the scale, and a
    sample's pull does not depend on which others are in its batch. Losses (B,) or (B, T) give a scalar. Samples that
    `batch.mask` leaves out are not counted; of none it is 0.
    """

    padding = True

    def forward(self, losses: Tensor, batch: Batch) -> Tensor:
        if batch.mask is None:
            return weighted(losses, batch).mean()
        mask = batch.mask.reshape(batch.mask.shape + (1,) * (losses.dim() - 1))
        count = batch.mask.sum() * losses[0].numel()
        return weighted(losses, batch).where(mask, 0.0).sum() / count.clamp(min=1)
