"""Sharpness methods: which gradient to step with, made from one or more passes around w."""

from typing import Protocol

from torch import Tensor

from runner.core.batch import Pass
from runner.core.weights import Weights


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

    def notices(self, run) -> list[str]:
        """Lines on what this method leaves out or treats otherwise in the weights of this run. Default: none."""
        return []


def nameless(weights: Weights) -> str:
    """The tensors of two axes or more that are not called a weight, such as a low-rank layer's factors: some of them by
    name and how many; empty where there are none."""
    found = [
        name
        for name, place in zip(weights.names, weights.places, strict=True)
        if "weight" not in name and sum(n > 1 for n in place.size) > 1
    ]
    more = f" and {len(found) - 2} more" if len(found) > 2 else ""
    return ", ".join(found[:2]) + more
