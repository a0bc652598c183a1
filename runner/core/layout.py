"""What the trainable tensors are to the network, and where they lie in a vector."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from runner.core.weights import Place, Weights, trainable

Role = Literal["matrix", "embedding", "head", "bias", "norm", "other"]
_NORM = re.compile(
    r"norm(act)?\d*d?$", re.IGNORECASE
)  # BatchNorm2d, LayerNorm, timm's BatchNormAct2d, a user's RMSNorm


@dataclass(frozen=True)
class Named:
    """A trainable tensor of model, loss or risk."""

    name: str
    shape: torch.Size
    role: Role


def named(model: nn.Module, *others: nn.Module) -> list[Named]:
    """The trainable tensors of the modules in the order of `runner.core.weights.trainable`, with their roles.

    - norm: of a normalisation layer, by its class or a class name that ends so;
    - bias: any other of the model with at most one axis;
    - embedding: of `nn.Embedding`, and what is neither a `weight` nor a `bias` and has a first axis of 1: what is added
      to every sample's activations, as class tokens and positions are;
    - head: the classifier's matrices, of `model.head` or owned by the loss;
    - matrix: every other one of the model with two axes or more, kernels of convolutions among them;
    - other: numbers and vectors of loss and risk.

    A tensor that several modules share has the role of the first.
    """
    owners: dict[nn.Parameter, tuple[nn.Module, str]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            owners.setdefault(parameter, (module, name))
    head = getattr(model, "head", None)
    last = {id(parameter) for parameter in head.parameters()} if isinstance(head, nn.Module) else set()

    def role(parameter: nn.Parameter) -> Role:
        if parameter not in owners:
            return "head" if parameter.dim() > 1 else "other"
        module, name = owners[parameter]
        if isinstance(module, nn.modules.batchnorm._NormBase) or _NORM.search(type(module).__name__):
            return "norm"
        if parameter.dim() < 2:
            return "bias"
        added = name not in ("weight", "bias") and len(parameter) == 1
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) or added:
            return "embedding"
        return "head" if id(parameter) in last else "matrix"

    return [Named(name, parameter.shape, role(parameter)) for parameter, name in trainable(model, *others).items()]


class Layout:
    """The tensors of one slice of the weights: what an optimizer that is given the slice as one vector goes by.

    Of a slice (P,), or (K, P) of K replicas; the few elements between tensors are zero and stay out.
    """

    def __init__(self, named: Sequence[Named], places: Sequence[Place]):
        self.named, self.places = list(named), list(places)

    def views(self, vector: Tensor) -> Iterator[tuple[Named, Tensor]]:
        """Every tensor, (..., *shape), as a view."""
        for one, place in zip(self.named, self.places, strict=True):
            yield one, place.view(vector)

    def matrices(self, vector: Tensor) -> dict[tuple[int, int], Tensor]:
        """Those of equal shape (m, n) as one (..., N, m, n), a copy; of a kernel (o, i, h, w) it is (o, i h w)."""
        found: dict[tuple[int, int], list[Tensor]] = {}
        for _, view in self.views(vector):
            matrix = view.flatten(vector.dim())
            found.setdefault(matrix.shape[-2:], []).append(matrix)
        return {shape: torch.stack(same, -3) for shape, same in found.items()}

    def put(self, vector: Tensor, matrices: dict[tuple[int, int], Tensor]) -> Tensor:
        """Write what `matrices` gave, changed, into the vector."""
        parts = {shape: iter(stacked.unbind(-3)) for shape, stacked in matrices.items()}
        for one, view in self.views(vector):
            shape = one.shape[0], one.shape[1:].numel()
            view.copy_(next(parts[shape]).reshape(view.shape))
        return vector


def layouts(weights: Weights, named: Sequence[Named]) -> list[Layout]:
    """One for each slice of the weights. named : what `named` gives of the same modules."""
    inside = [(named[number], place) for number, place in zip(weights.order, weights.places, strict=True)]
    found = []
    for start, end in weights.cuts:
        own = [(one, replace(place, start=place.start - start)) for one, place in inside if start <= place.start < end]
        found.append(Layout(*zip(*own, strict=True)))
    return found
