"""The trainable parameters as one vector."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

ALIGN = 16  # elements: every tensor starts on a 64-byte border, as vector instructions and GPU kernels like it


class Weights:
    """All trainable parameters in one flat buffer `data` (P,) and their gradients in `grad` (P,).

    The modules' own tensors become views of the two buffers, with their memory format kept, so that an elementwise
    update or a norm is one operation whatever the depth. Between tensors there are a few padding elements; they are
    zero in both buffers and stay zero under any elementwise update of w and its gradient.

    Parameters
    ----------
    modules : nn.Module, one or more
        Already on their final device, dtype and memory format (a later `.to()` would break the views). All trainable
        parameters must share one dtype and one device; a parameter that several modules share is taken once.

    Raises
    ------
    ValueError
        Nothing to train, or mixed dtypes or devices.
    """

    def __init__(self, *modules: nn.Module):
        named = {}
        for module in modules:
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    named.setdefault(parameter, name)
        if not named:
            raise ValueError("there is nothing to train: no parameter requires a gradient")
        kinds = {(parameter.dtype, parameter.device) for parameter in named}
        if len(kinds) > 1:
            raise ValueError(f"trainable parameters must share one dtype and device, got {sorted(map(str, kinds))}")
        self.parameters: list[nn.Parameter] = list(named)
        self.names: list[str] = list(named.values())
        self.slices: list[slice] = []
        self._grads: list[Tensor] = []
        end = 0
        for parameter in self.parameters:
            self.slices.append(slice(end, end + parameter.numel()))
            end += -(-parameter.numel() // ALIGN) * ALIGN
        (dtype, device) = kinds.pop()
        self.data = torch.zeros(end, dtype=dtype, device=device)
        self.grad = torch.zeros_like(self.data)
        self.count = sum(parameter.numel() for parameter in self.parameters)
        for parameter, where in zip(self.parameters, self.slices, strict=True):
            values, gradient = (self._view(buffer, parameter, where) for buffer in (self.data, self.grad))
            values.copy_(parameter.data)
            parameter.data = values
            parameter.grad = gradient
            self._grads.append(gradient)
        self.flat = nn.Parameter(self.data)  # shares memory with `data`: what an elementwise optimizer steps
        self.flat.grad = self.grad

    @staticmethod
    def _view(buffer: Tensor, parameter: Tensor, where: slice) -> Tensor:
        # empty_like keeps the strides of a dense tensor (channels_last) and makes an overlapping one contiguous
        return buffer.as_strided(parameter.size(), torch.empty_like(parameter).stride(), where.start)

    def views(self, vector: Tensor) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor in the parameter's shape) for every parameter, as views of a (P,) vector."""
        for name, parameter, where in zip(self.names, self.parameters, self.slices, strict=True):
            yield name, self._view(vector, parameter, where)

    def flatten(self, tensors: Iterable[Tensor | None]) -> Tensor:
        """One (P,) vector out of tensors in the parameters' shapes, differentiably; None is zero."""
        parts, end = [], 0
        for tensor, parameter, where in zip(tensors, self.parameters, self.slices, strict=True):
            tensor = torch.zeros_like(parameter) if tensor is None else tensor
            stride = parameter.stride()
            memory_order = sorted(range(parameter.dim()), key=lambda axis: (-stride[axis], axis))
            parts += [tensor.new_zeros(where.start - end), tensor.permute(memory_order).reshape(-1)]
            end = where.stop
        return torch.cat([*parts, self.data.new_zeros(len(self.data) - end)])

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

    def zero_grad(self) -> None:
        self.grad.zero_()

    def clone(self) -> Tensor:
        return self.data.clone()

    def copy_(self, vector: Tensor) -> None:
        self.data.copy_(vector)

    def add_(self, vector: Tensor, alpha: float | Tensor = 1.0) -> None:
        """w += alpha * vector; alpha is a number or a 0-d tensor (no synchronisation with the device)."""
        if isinstance(alpha, Tensor):
            self.data.addcmul_(vector, alpha)
        else:
            self.data.add_(vector, alpha=alpha)

    def scale_(self, factor: float | Tensor) -> None:
        self.data.mul_(factor)

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
