"""Optimizers: ordinary torch.optim.Optimizer classes that take a closure, for this loop or anyone's.

A class that says `flat = True` is handed the weights as flat vectors, slices of all of them: one, or one for each group
of `groups` and each role in its `split`, so that a step is a few operations a group, whatever the depth of the model.
That is for updates that are elementwise (what an element becomes depends on its own value, gradient and state), or that
go by tensors and ask for `layouts`, a `runner.core.layout.Layout` for each group, which says where they are. K replicas
are (K, P), and a hyperparameter in which they differ is a float64 tensor (K,): such a class works with either. The
functions below are torch's own in-place ones where the factor is a number, and accept (K,) as well.

`split` : roles (`runner.core.layout.Role`) that are groups of their own; a group has its role, or "rest", as "part".

`closure()` fills the gradients and returns the loss: on several processes, of a flat class this process's share of it,
of any other the whole. `closure.value()` is the loss at the present weights, whole, and `closure.hvp(vectors)` the
Hessian of the loss times a vector, one for each group (`runner.engine.closure.Asked`): a class that asks for these says
`looks = True`, as does a flat one that uses the loss or asks for several gradients; its closure returns the whole.
"""

import copy
from collections import defaultdict
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


def twin(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """A shallow copy, with the attributes of its own class too, which copy.copy of torch's base class leaves out; its
    state is empty."""
    made = copy.copy(optimizer)
    vars(made).update({name: value for name, value in vars(optimizer).items() if name not in vars(made)})
    made.state = defaultdict(dict)
    return made


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
