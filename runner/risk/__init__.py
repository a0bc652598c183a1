"""Risks: how per-sample losses become the one number to minimise."""

from torch import Tensor, nn

from runner.batch import Batch


class Risk(nn.Module):
    """Base of every risk: (B,) losses -> a scalar. `batch.weight`, where set, multiplies the losses.

    Attributes
    ----------
    padding : bool
        Whether it leaves out the samples for which `batch.mask`, where set, is False. Default False: clients of
        different sizes are then not trained side by side.
    """

    padding: bool = False

    def forward(self, losses: Tensor, batch: Batch) -> Tensor:
        raise NotImplementedError
