"""Sharpness methods: which gradient to step with, made from one or more passes around w."""

from typing import Protocol

from torch import Tensor

from runner.batch import Pass
from runner.weights import Weights


class Closure(Protocol):
    """Zero grad, every micro-batch forward and backward, unscale, reduce over devices: fills `Weights.grad`.

    mask : only these samples. below : only samples whose loss is below it have a gradient, the others weigh as before;
    a number, or one for each replica.
    """

    def __call__(
        self, mask: Tensor | None = None, create_graph: bool = False, below: float | Tensor | None = None
    ) -> Pass: ...


class Sharpness:
    """Base of every sharpness method. In: weights at w. Out: weights at w bit for bit, `weights.grad` the gradient to
    step with; returns the pass measured at w.

    Attributes
    ----------
    m : int or None
        Samples that share one perturbation (m-sharpness, Foret et al. 2021, section 4.1). None: the whole batch over
        all devices. The engine calls the method once for every m samples of a device and averages the gradients.
    replicas : bool
        Whether it works on K replicas at once, where vectors are (K, P), their norms and products (K,), and any number
        of its own may be (K,) too: no branch on such a value, no reduction over all of a vector. Default False: runs
        with the method are not trained side by side.
    """

    m: int | None = None
    replicas: bool = False

    def __call__(self, closure: Closure, weights: Weights) -> Pass:
        raise NotImplementedError
