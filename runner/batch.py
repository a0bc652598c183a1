"""What travels through a step: a batch of samples, the model's output, and one pass over them."""

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(slots=True)
class Batch:
    """B training samples, on the device and already augmented."""

    x: Tensor  # (B, ...) inputs
    y: Tensor  # (B,) class ids, (B, C) soft or multi-hot targets, or (B,) floats
    index: Tensor  # (B,) int64, position in the training set: sample memories key on it
    domain: Tensor | None = None  # (B,) environment, group or client, where the dataset has one
    weight: Tensor | None = None  # (B,) sample weights, where a hook or sampler sets them
    total: int = 0  # samples in the step's whole batch, over all micro-batches and devices; 0 means len(self)

    def __len__(self) -> int:
        return len(self.x)

    def select(self, where) -> "Batch":
        """The samples at `where` (a slice, an index or a boolean mask); `total` is kept."""
        values = (getattr(self, field.name) for field in fields(self) if field.name != "total")
        return Batch(*(None if value is None else value[where] for value in values), total=self.total)

    def split(self, size: int) -> Iterator["Batch"]:
        """Consecutive parts of at most `size` samples."""
        if size >= len(self):
            yield self
        else:
            for start in range(0, len(self), size):
                yield self.select(slice(start, start + size))


@dataclass(slots=True)
class Output:
    """What every model returns."""

    logits: Tensor  # (B, C)
    features: Tensor  # (B, D), the input of the classifier

    def detach(self) -> "Output":
        return Output(self.logits.detach(), self.features.detach())

    @staticmethod
    def cat(parts: list["Output"]) -> "Output":
        """The outputs of consecutive parts of a batch as that of the whole."""
        if len(parts) == 1:
            return parts[0]
        return Output(torch.cat([part.logits for part in parts]), torch.cat([part.features for part in parts]))


@dataclass(slots=True)
class Pass:
    """One forward and backward over a batch. The gradient itself is in `Weights.grad`."""

    loss: Tensor  # scalar, detached: what was minimised, penalties included
    out: Output  # detached, over the whole local batch
    grad: Tensor | None = None  # (P,) differentiable gradient, only where `create_graph` asked for it
