"""Huber loss."""

from torch import Tensor

from runner.core.batch import Batch, Output
from runner.core.schema import Positive
from runner.loss import Loss, errors


class Huber(Loss):
    """Huber loss (Huber, Annals of Mathematical Statistics 1964): squared for small errors, absolute for large ones.

        L = 1/C * sum_c h(y_c - z_c),   h(e) = e^2 / 2 for |e| <= delta,   delta (|e| - delta / 2) beyond

    y are the C targets of a sample and z the model's outputs.
    Outputs (..., C) and targets (..., C), or (...) where C is 1, give (...).

    Parameters
    ----------
    delta : in the units of y. Default 1, torch's, for standardised targets. Huber has 1.345 standard deviations of the
        noise, which is almost as good as the squared error where the noise is normal.
    """

    tasks = ("regression",)

    def __init__(self, delta: Positive = 1.0):
        super().__init__()
        self.delta = delta

    def forward(self, out: Output, batch: Batch) -> Tensor:
        size = errors(out.logits, batch.y).abs()
        near = size.clamp_max(self.delta)
        return (near * (size - near / 2)).mean(-1)
