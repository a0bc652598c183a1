"""The trainable parameters as one vector."""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

ALIGN = 16  # elements: every tensor starts on a 64-byte border, as vector instructions and GPU kernels like it


def column(value: float | Tensor, like: Tensor) -> float | Tensor:
    """A number as it is; one for each replica, (K,), so that it multiplies `like`, (K, ...), replica by replica."""
    if isinstance(value, Tensor):
        return value.to(like.dtype).view(-1, *[1] * (like.dim() - 1))
    return value


@dataclass(frozen=True)
class Place:
    """Where one tensor lives in a vector."""

    size: torch.Size
    stride: tuple[int, ...]
    start: int

    def view(self, vector: Tensor) -> Tensor:
        """The tensor as a view of (P,), or with a leading replica axis of (K, P)."""
        size, stride = (*vector.shape[:-1], *self.size), (*vector.stride()[:-1], *self.stride)
        return vector.as_strided(size, stride, vector.storage_offset() + self.start)


def trainable(*modules: nn.Module) -> dict[nn.Parameter, str]:
    """The modules' trainable parameters, each once, with their names."""
    found: dict[nn.Parameter, str] = {}
    for module in modules:
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                found.setdefault(parameter, name)
    return found


class Weights:
    """All trainable parameters in one flat buffer `data` (P,) and their gradients in `grad` (P,).

    The modules' own tensors become views of the two buffers, with their memory format kept, so that an elementwise
    update or a norm is one operation whatever the depth. Between tensors there are a few padding elements; they are
    zero in both buffers and stay zero under any elementwise update of w and its gradient.

    Tensors with equal keys lie together, in a slice of their own: `slices` are parameters (P_i,) that share memory with
    `data`, what an optimizer of the flat kind steps, each with numbers of its own. Without keys there is one.

    K replicas are (K, P): see `stack`. `dot` and `norm` then give (K,), and whatever multiplies a vector may be (K,).

    Parameters
    ----------
    modules : nn.Module, one or more
        Already on their final device, dtype and memory format (a later `.to()` would break the views). All trainable
        parameters must share one dtype and one device; a parameter that several modules share is taken once.
    keys : list, default None
        One for each of `trainable(*modules)`: slices come in the order in which keys first occur.

    Raises
    ------
    ValueError
        Nothing to train, or mixed dtypes or devices.
    """

    def __init__(self, *modules: nn.Module, keys: Sequence[Hashable] | None = None):
        named = trainable(*modules)
        if not named:
            raise ValueError("there is nothing to train: no parameter requires a gradient")
        kinds = {(parameter.dtype, parameter.device) for parameter in named}
        if len(kinds) > 1:
            raise ValueError(f"trainable parameters must share one dtype and device, got {sorted(map(str, kinds))}")
        self.keys = [None] * len(named) if keys is None else list(keys)
        by_key: dict[Hashable, list[int]] = {}
        for number, key in zip(range(len(named)), self.keys, strict=True):
            by_key.setdefault(key, []).append(number)
        self.order = [number for same in by_key.values() for number in same]  # of the tensors, among the trainable ones
        every = list(named.items())
        self.parameters: list[nn.Parameter] = [every[number][0] for number in self.order]
        self.names: list[str] = [every[number][1] for number in self.order]
        self.places: list[Place] = []
        self.cuts: list[tuple[int, int]] = []  # where slices begin and end
        end = 0
        for same in by_key.values():
            start = end
            for parameter, _ in (every[number] for number in same):
                # empty_like keeps the strides of a dense tensor (channels_last) and makes an overlapping one contiguous
                self.places.append(Place(parameter.size(), torch.empty_like(parameter).stride(), end))
                end += -(-parameter.numel() // ALIGN) * ALIGN
            self.cuts.append((start, end))
        (dtype, device) = kinds.pop()
        data = torch.zeros(end, dtype=dtype, device=device)
        self.count = sum(parameter.numel() for parameter in self.parameters)
        for parameter, place in zip(self.parameters, self.places, strict=True):
            place.view(data).copy_(parameter.data)
        self.slices = [nn.Parameter(data[start:end]) for start, end in self.cuts]
        self.idle: set[int] = set()  # slices that do not step now: see `runner.engine.players`
        self._live_in(data, torch.zeros_like(data))

    def _live_in(self, data: Tensor, grad: Tensor) -> None:
        """Make these two buffers, with their present values, the weights and their gradients."""
        self.data, self.grad = data, grad
        self._grads = [place.view(grad) for place in self.places]
        for parameter, place, gradient in zip(self.parameters, self.places, self._grads, strict=True):
            parameter.data, parameter.grad = place.view(data), gradient
        for own, value, gradient in zip(self.slices, self.cut(data), self.cut(grad), strict=True):
            own.data, own.grad = value, gradient

    def cut(self, vector: Tensor) -> list[Tensor]:
        """The slices of a (P,) or (K, P) vector, as views."""
        return [vector[..., start:end] for start, end in self.cuts]

    @classmethod
    def stack(cls, members: "list[Weights]") -> "Weights":
        """K vectors of one layout as one (K, P), of which they are the rows from here on.

        `parameters` are then (K, *shape), and a row changes with its member. Raises ValueError for other layouts.
        """
        first = members[0]
        if any((m.places, m.names, m.cuts) != (first.places, first.names, first.cuts) for m in members):
            raise ValueError("their parameters differ in number, name or shape")
        stacked = object.__new__(cls)
        stacked.names, stacked.places, stacked.count = first.names, first.places, first.count
        stacked.keys, stacked.cuts, stacked.idle = first.keys, first.cuts, first.idle
        data = torch.stack([member.data for member in members])
        stacked.parameters = [nn.Parameter(place.view(data)) for place in stacked.places]
        stacked.slices = [nn.Parameter(own) for own in stacked.cut(data)]
        stacked._live_in(data, torch.stack([member.grad for member in members]))
        for member, row, gradient in zip(members, stacked.data, stacked.grad, strict=True):
            member._live_in(row, gradient)
        return stacked

    def views(self, vector: Tensor) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor in the parameter's shape) for every parameter, as views of a (P,) or (K, P) vector."""
        for name, place in zip(self.names, self.places, strict=True):
            yield name, place.view(vector)

    def flatten(self, tensors: Iterable[Tensor | None]) -> Tensor:
        """One (P,) or (K, P) vector out of tensors in the parameters' shapes, differentiably; None is zero."""
        lead, parts, end = self.data.shape[:-1], [], 0
        for tensor, parameter, place in zip(tensors, self.parameters, self.places, strict=True):
            tensor = torch.zeros_like(parameter) if tensor is None else tensor
            memory_order = sorted(range(len(place.size)), key=lambda axis: (-place.stride[axis], axis))
            order = (*range(len(lead)), *(len(lead) + axis for axis in memory_order))
            parts += [tensor.new_zeros(*lead, place.start - end), tensor.permute(order).reshape(*lead, -1)]
            end = place.start + place.size.numel()
        return torch.cat([*parts, self.data.new_zeros(*lead, self.data.shape[-1] - end)], -1)

    @torch.no_grad()
    def set_grad(self, parts: Sequence[Tensor | None], add: bool = False) -> None:
        """grad = parts (grad += parts with `add`), in the parameters' shapes; None, of an unused parameter, is zero."""
        views = self._grads
        if any(part is None for part in parts):
            views = [view for view, part in zip(views, parts, strict=True) if part is not None]
            parts = [part for part in parts if part is not None]
            if not add:
                self.grad.zero_()
        if add:
            torch._foreach_add_(views, list(parts))
        else:
            torch._foreach_copy_(views, list(parts))

    @property
    def active(self) -> list[bool]:
        """Of every tensor, whether it is of a slice that steps now."""
        cuts = [cut for number, cut in enumerate(self.cuts) if number not in self.idle]
        return [any(start <= place.start < end for start, end in cuts) for place in self.places]

    def attach(self) -> None:
        """Every parameter's `.grad` is its view of `grad` again: an optimizer may have set it to None. Those of idle
        slices have none, so that optimizers pass them by."""
        active = self.active if self.idle else [True] * len(self.places)
        for parameter, view, steps in zip(self.parameters, self._grads, active, strict=True):
            parameter.grad = view if steps else None
        for number, (own, view) in enumerate(zip(self.slices, self.cut(self.grad), strict=True)):
            own.grad = None if number in self.idle else view

    def zero_grad(self) -> None:
        self.grad.zero_()

    def clone(self) -> Tensor:
        return self.data.clone()

    def copy_(self, vector: Tensor) -> None:
        self.data.copy_(vector)

    def add_(self, vector: Tensor, alpha: float | Tensor = 1.0) -> None:
        """w += alpha * vector; alpha is a number, or a tensor () or (K,) (no synchronisation with the device)."""
        if isinstance(alpha, Tensor):
            self.data.addcmul_(vector, column(alpha, self.data))
        else:
            self.data.add_(vector, alpha=alpha)

    def scale_(self, factor: float | Tensor) -> None:
        self.data.mul_(column(factor, self.data))

    @staticmethod
    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(-1)

    @staticmethod
    def norm(vector: Tensor) -> Tensor:
        """Euclidean norm over the last axis."""
        return torch.linalg.vector_norm(vector, dim=-1)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Whatever happens inside, an exception too, w comes back bit for bit."""
        saved = self.data.clone()
        try:
            yield
        finally:
            self.data.copy_(saved)
