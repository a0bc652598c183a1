"""Absolute error."""

from torch import Tensor

from runner.core.batch import Batch, Output
from runner.loss import Loss, errors


class AbsoluteError(Loss):
    """Absolute error, whose best constant output is the median.

        L = 1/C * sum_c |y_c - z_c|

    y are the C targets of a sample and z the model's outputs.
    Outputs (..., C) and targets (..., C), or (...) where C is 1, give (...).
    """

    tasks = ("regression",)

    def forward(self, out: Output, batch: Batch) -> Tensor:
        return errors(out.logits, batch.y).abs().mean(-1)
