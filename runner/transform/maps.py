"""Weight maps: a layer that computes with f_n(.. f_1(w)) where it computed with its weight w.

A layer stays what it was, a Linear or Conv2d with a `weight` that is trained (or frozen), and gets `maps`, modules from
a weight to one of its shape. Whoever wants the weight that a layer computes with, as quantizers do, asks `effective`.
"""

import copy
from collections.abc import Iterable
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.core.mistake import nearest


class Same(nn.Conv2d):
    """A convolution that pads with zeros as TensorFlow's SAME does, for an output of ceil(size / stride); what is odd
    goes to the right and below."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        sides: list[int] = []
        for size, kernel, stride, dilation in zip(x.shape[-2:], self.kernel_size, self.stride, self.dilation):
            missing = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
            sides = [missing // 2, missing - missing // 2, *sides]  # F.pad wants the last axis first
        return super()._conv_forward(F.pad(x, sides), weight, bias)


class MappedLinear(nn.Linear):
    """A linear layer that computes with its effective weight."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, effective(self), self.bias)


class MappedConv2d(nn.Conv2d):
    """A convolution that computes with its effective weight."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, effective(self), self.bias)


class MappedSame(MappedConv2d, Same):
    """The same of a convolution that pads as TensorFlow does."""


MAPPED = {nn.Linear: MappedLinear, nn.Conv2d: MappedConv2d, Same: MappedSame}


def effective(layer: nn.Module, count: int | None = None) -> Tensor:
    """The weight that the layer computes with, or what its first `count` maps make."""
    weight = layer.weight
    for change in list(getattr(layer, "maps", ()))[:count]:
        weight = change(weight)
    return weight


def layers(model: nn.Module, skip: Iterable[str] = ()) -> dict[str, nn.Module]:
    """The layers that can have maps, by name; without those whose name fits one of the shell patterns in `skip`.

    Raises ValueError where there are none, or none that a pattern fits.
    """
    kinds = (*MAPPED, *MAPPED.values())
    found = {name: layer for name, layer in model.named_modules() if type(layer) in kinds}
    for pattern in skip:
        if not any(fnmatchcase(name, pattern) for name in found):
            raise ValueError(f"no Linear or Conv2d is called {nearest(pattern, found)}")
    chosen = {n: layer for n, layer in found.items() if not any(fnmatchcase(n, pattern) for pattern in skip)}
    if not chosen:
        raise ValueError(f"{type(model).__name__} has no Linear or Conv2d {'beside those' if found else 'layer'}")
    return chosen


def put(layer: nn.Module, change: nn.Module) -> None:
    """Give the layer one more map, after those that it has; it keeps its name, class and tensors."""
    if type(layer) in MAPPED:
        layer.__class__ = MAPPED[type(layer)]
        layer.maps = nn.ModuleList()
    layer.maps.append(change.to(layer.weight.device).train(layer.training))


def mapped(model: nn.Module) -> list[str]:
    """The names of the layers that have maps."""
    return [name for name, layer in model.named_modules() if hasattr(layer, "maps")]


@torch.no_grad()
def baked(model: nn.Module) -> nn.Module:
    """The model, or where there are maps a copy that has effective weights instead, and all of its tensors frozen."""
    if not mapped(model):
        return model
    plain = {kind: origin for origin, kind in MAPPED.items()}
    model = copy.deepcopy(model).requires_grad_(False)
    for name in mapped(model):
        layer = model.get_submodule(name)
        layer.weight = nn.Parameter(effective(layer).clone(), requires_grad=False)
        del layer.maps
        layer.__class__ = plain.get(type(layer), type(layer))  # a quantized one is made of either
    return model
