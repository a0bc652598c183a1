"""Spectral decoupling."""

from collections.abc import Iterable
from typing import Annotated

from torch import Tensor

from runner.core.batch import Batch, Output
from runner.core.precision import wide
from runner.core.reach import Begin
from runner.core.schema import Natural, NonNegative, Positive, When
from runner.core.weights import column
from runner.hook import Hook


class SpectralDecoupling(Hook):
    """Penalise the logits z instead of the weights (Pezeshki et al., NeurIPS 2021, arXiv:2011.09468).

        L_t = s_t * (risk + c_t * mean z^2),   the mean over samples and logits,   t = updates so far
        t < delay:    c_t = before,        s_t = 1
        t >= delay:   c_t = coefficient,   s_t = scale

    The paper writes the penalty of a network with one logit as lambda / 2 * ||z||^2; its code, and DomainBed's `SD`
    with any number of logits, as coefficient * mean(z^2). This is the code's form: with one logit and the mean as the
    risk, lambda = 2 * coefficient. Where that one logit comes as the pair (0, z), as from model=mlp_reference, the mean
    over both is z^2 / 2, and the coefficient is twice that for one logit.

    The defaults are DomainBed's: 0.1 from the first step on. The authors' code for Colored MNIST minimises
    risk + 2e-5 * mean z^2 until step 450 and 2e-5 * (risk + mean z^2) from then on. Adam does not see the scale of a
    loss, but it does see a change of scale for as long as its average of squared gradients remembers the larger ones,
    and with very small gradients it sees its epsilon; so `scale` is a part of that recipe. It multiplies the gradient
    that the sharpness method returned, but neither the recorded loss nor the optimizer's own weight decay; hooks on
    the gradient act in the order in which they were chosen. The penalty is a plain mean: it knows neither the risk's
    weights nor those of samples.

    Parameters
    ----------
    coefficient : c from step `delay` on. Default 0.1.
    delay : updates before that. Default 0.
    before : c until then. Default 0.
    scale : s from step `delay` on. Default 1.
    """

    replicas = True
    predictions = True

    def __init__(
        self,
        coefficient: NonNegative = 0.1,
        delay: Natural = 0,
        before: Annotated[NonNegative, When("delay", 0, but=True)] = 0.0,
        scale: Positive = 1.0,
    ):
        self.coefficient, self.delay, self.before, self.scale = coefficient, delay, before, scale

    def begins(self, steps: int, steps_per_epoch: int) -> Iterable[Begin]:
        yield Begin(f"delay={self.delay}", self.delay, f"the penalty's coefficient stays at before={self.before:g}")

    def loss(self, run, out: Output, batch: Batch) -> Tensor:
        weight = (run.count < self.delay) * self.before + (run.count >= self.delay) * self.coefficient
        return weight * wide(out.logits).square().mean()

    def gradient(self, run) -> None:
        factor = (run.count < self.delay) + (run.count >= self.delay) * self.scale
        if isinstance(factor, Tensor) or factor != 1:
            run.weights.grad.mul_(column(factor, run.weights.grad))
