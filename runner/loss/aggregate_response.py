"""Losses of bags and of their samples, interpolated."""

from torch import Tensor

from runner.core.batch import Batch, Output
from runner.core.mistake import ConfigError
from runner.core.precision import wide
from runner.core.schema import Fraction
from runner.loss import Loss, soft_targets


class AggregateResponse(Loss):
    """Squared error of a bag and of its samples (Javanmard et al., ICLR 2024, arXiv:2401.11081).

        L_i = (1 - rho) ||a - mean_{j in bag of i} f_j||^2 + rho ||a - f_i||^2

    a is the bag's mean target (dataset.bag_size), f the output; where the targets are shares of classes, which the
    paper's regression has not, f = softmax(z). rho = 0 is the bag-level loss, rho = 1 the instance-level loss, which is
    the bag-level loss plus the variance of f within the bag. With bags of one sample all are the squared error.

    The mean is over the samples of the bag that are in the (micro-)batch: all of them where train.batch_size is a
    multiple of dataset.bag_size, and so is its part for each device and micro-batch. The paper's private variant, with
    noise on a, is not here: its calibration was not to be found.
    Logits (B, C) or (B, 1) give (B,). ConfigError, before a run starts, for several regression targets a sample.

    Parameters
    ----------
    rho : default 0.5; the paper tunes it and has no default.
    bag : from the data set.
    """

    tasks = ("classes", "regression")
    padding = False

    def __init__(self, rho: Fraction = 0.5, *, bag: int):
        super().__init__()
        self.rho = rho
        self.bag = bag

    def notices(self, run) -> list[str]:
        if run.dataset.task == "regression" and run.dataset.classes > 1:  # which would be taken for shares of classes
            raise ConfigError(
                f"loss=aggregate_response takes one target a sample, and this data set has {run.dataset.classes}"
            )
        return []

    def forward(self, out: Output, batch: Batch) -> Tensor:
        f, y = wide(out.logits), batch.y
        if y.is_floating_point() and y.dim() < f.dim():
            y = y.to(f.dtype).unsqueeze(-1)
        else:
            y, f = soft_targets(y, f), f.softmax(-1)
        bag = batch.index // self.bag
        same = (bag.unsqueeze(-1) == bag.unsqueeze(-2)).to(f.dtype)
        mean = same @ f / same.sum(-1, keepdim=True)
        whole, single = ((y - value).square().sum(-1) for value in (mean, f))
        return (1 - self.rho) * whole + self.rho * single
