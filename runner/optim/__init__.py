"""Optimizers: ordinary torch.optim.Optimizer classes that take a closure, for this loop or anyone's.

A class whose update is elementwise says so with `elementwise = True`: what an element becomes depends on its own
value, gradient and state, not on the others' nor on the loss. The engine then hands it all parameters as one flat
tensor, which changes nothing in the result and makes a step a few operations whatever the depth of the model. On
several processes such an optimizer's closure returns the process's share of the loss, any other's the whole.
K replicas are one flat (K, P), and a hyperparameter in which they differ is a float64 tensor (K,): such a class works
with either. The functions below are torch's own in-place ones where the factor is a number, and accept (K,) as well.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from runner.core.weights import column


def loss_of(closure: Callable[[], Tensor] | None) -> Tensor | None:
    """What the closure returns after it has filled in the gradients; None where there is none."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def with_gradients(optimizer: torch.optim.Optimizer) -> Iterator[tuple[dict, Tensor]]:
    """(group, w) for all that has a gradient."""
    for group in optimizer.param_groups:
        for w in group["params"]:
            if w.grad is not None:
                yield group, w


def given(value: float | Tensor) -> bool:
    """Whether a term is switched on. Replicas that differ in a hyperparameter all have the term."""
    return isinstance(value, Tensor) or bool(value)


def add_(y: Tensor, x: Tensor, factor: float | Tensor) -> Tensor:
    """y += factor * x."""
    return y.addcmul_(x, column(factor, y)) if isinstance(factor, Tensor) else y.add_(x, alpha=factor)


def plus(y: Tensor, x: Tensor, factor: float | Tensor) -> Tensor:
    """y + factor * x."""
    return y.addcmul(x, column(factor, y)) if isinstance(factor, Tensor) else y.add(x, alpha=factor)


def addcmul_(y: Tensor, a: Tensor, b: Tensor, factor: float | Tensor) -> Tensor:
    """y += factor * a * b."""
    if isinstance(factor, Tensor):
        return y.addcmul_(a, b * column(factor, y))
    return y.addcmul_(a, b, value=factor)


def addcdiv_(y: Tensor, a: Tensor, b: Tensor, factor: float | Tensor) -> Tensor:
    """y += factor * a / b."""
    if isinstance(factor, Tensor):
        return y.addcdiv_(a * column(factor, y), b)
    return y.addcdiv_(a, b, value=factor)
