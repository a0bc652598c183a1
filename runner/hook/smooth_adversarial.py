"""The smooth adversarial term of comp-sum losses."""

import torch
from torch import Tensor

from runner.core.batch import Batch, Output
from runner.core.precision import wide
from runner.core.schema import Count, NonNegative, Positive
from runner.hook import Hook
from runner.hook.adversarial import ascend, declared
from runner.loss import soft_targets
from runner.risk.mean import weighted


class SmoothAdversarial(Hook):
    """How far the differences of a sample's scores can be moved (Mao, Mohri & Zhong, ICML 2023, arXiv:2304.07288,
    smooth adversarial comp-sum losses): with loss=comp_sum the paper's adversarial form, but it adds to any loss.

        objective + nu * (1/B) sum_i  max_{x' near x_i} || D(x') - D(x_i) ||_2,   D(x)_c = z_y(x) - z_c(x),  c != y

    The maximum is sought by `steps` moves along the sign of the gradient within |x' - x| <= epsilon, from a random
    point, as at x itself the norm has no slope. Lengths and range are those of hook=pgd. It is sought anew in every
    pass, at the weights of that pass, which cost steps + 1 passes more; running statistics do not see it, and its
    dropout masks are those of the pass. Runs with it are not trained side by side.

    Not settled: the text of the paper beyond its abstract could not be read. The term is that of public summaries and
    of the theory (a penalty on the change of score differences); the paper scales scores by a margin 1 / rho in its
    first part, which is loss=comp_sum of unscaled scores here, and its values of nu, steps and step size are unknown.
    A soft target q gives the expected norm sum_c q_c ||D||, as losses do, and several labels the sum of theirs.

    Parameters
    ----------
    nu : weight. Default 1, of our own.
    epsilon, step : of the moves, as shares of the inputs' range. Default 8 / 255 and 2 / 255, as for PGD on CIFAR-10.
    steps : default 10, of our own.
    bounds : that range, from the data set.

    Raises
    ------
    ValueError
        The data set has no range, or is a regression, which has no scores of classes.
    """

    predictions = True

    def __init__(
        self,
        nu: NonNegative = 1.0,
        epsilon: NonNegative = 8 / 255,
        step: Positive = 2 / 255,
        steps: Count = 10,
        *,
        bounds: tuple[float, float] | None,
    ):
        self.nu, self.epsilon, self.step_size, self.steps = nu, epsilon, step, steps
        self.bounds = declared(bounds)

    def start(self, run) -> None:
        if run.dataset.task == "regression":
            raise ValueError("smooth_adversarial compares scores of classes, and this data set is a regression")

    def loss(self, run, out: Output, batch: Batch) -> Tensor:
        here = wide(out.logits)

        def far(x: Tensor, own: Tensor) -> Tensor:
            """(B,) the norms, from logits `own`."""
            change = wide(run.outputs(x).logits) - own
            away = (change - change.mean(-1, keepdim=True)).square()  # sum_c (d_y - d_c)^2 = C away_y + sum_c away_c
            squares = away.shape[-1] * away + away.sum(-1, keepdim=True)  # of the norm, were each class the label
            norms = squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()  # the root has an infinite slope at 0
            return (soft_targets(batch.y, own) * norms).sum(-1)

        box = (self.epsilon, *self.bounds)
        moved = ascend(run, batch, lambda x: far(x, here.detach()).sum(), box, self.step_size, self.steps, True)
        with run.statistics(live=False):
            return self.nu * weighted(far(moved, here), batch).mean()
