"""Quantile loss."""

from typing import Annotated

from torch import Tensor

from runner.core.batch import Batch, Output
from runner.core.schema import Range
from runner.loss import Loss, errors


class Quantile(Loss):
    """Quantile loss, also pinball loss (Koenker & Bassett, Econometrica 1978), whose best output is y's quantile.

        L = 1/C * sum_c max(level (y_c - z_c), (level - 1) (y_c - z_c))

    y are the C targets of a sample and z the model's outputs.
    Outputs (..., C) and targets (..., C), or (...) where C is 1, give (...).

    The run is measured by the errors of z as any other, MAE and RMSE, which are those of a quantile then.

    Parameters
    ----------
    level : in (0, 1). Default 0.5, the median: half of the absolute error.
    """

    tasks = ("regression",)

    def __init__(self, level: Annotated[float, Range(0, 1, open_low=True, open_high=True)] = 0.5):
        super().__init__()
        self.level = level

    def forward(self, out: Output, batch: Batch) -> Tensor:
        e = errors(out.logits, batch.y)
        return (self.level * e - e.clamp_max(0.0)).mean(-1)
