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
    mask: Tensor | None = None  # (B,) bool, False where a sample only fills up the batch: it must change nothing
    limit: Tensor | None = None  # (B,) losses that are not below it have no gradient, where a sharpness method sets it
    guide: Tensor | None = None  # (B, C) logits that are to be imitated, where quantization sets them
    total: int = 0  # samples in the step's whole batch, over all micro-batches and devices; 0 means len(self)
    epoch: int = 0  # of the step, from 0, for losses that change with it; of a client's own data in a federation
    lead: int = 0  # 1 where every tensor has a leading replica axis: (K, B, ...)

    def __len__(self) -> int:
        return self.x.shape[self.lead]

    def tensors(self) -> dict[str, Tensor]:
        """The fields that hold one."""
        values = {field.name: getattr(self, field.name) for field in fields(self)[:8]}
        return {name: value for name, value in values.items() if value is not None}

    def select(self, where) -> "Batch":
        """The samples at `where` (a slice, an index or a boolean mask); `total` is kept."""
        where = (slice(None),) * self.lead + (where,)
        chosen = {name: value[where] for name, value in self.tensors().items()}
        return Batch(**chosen, total=self.total, epoch=self.epoch, lead=self.lead)

    def replica(self, k: int) -> "Batch":
        """One replica's batch out of (K, B, ...)."""
        own = {name: value[k] for name, value in self.tensors().items()}
        return Batch(**own, total=self.total, epoch=self.epoch)

    @staticmethod
    def stack(batches: "list[Batch]") -> "Batch":
        """The batches of K replicas as one (K, B, ...)."""
        fields_of = [batch.tensors() for batch in batches]
        stacked = {name: torch.stack([own[name] for own in fields_of]) for name in fields_of[0]}
        return Batch(**stacked, total=batches[0].total, epoch=batches[0].epoch, lead=1)

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
    def cat(parts: list["Output"], axis: int = 0) -> "Output":
        """The outputs of consecutive parts of a batch as that of the whole; `axis` is that of the samples."""
        if len(parts) == 1:
            return parts[0]
        return Output(torch.cat([p.logits for p in parts], axis), torch.cat([p.features for p in parts], axis))


@dataclass(slots=True)
class Pass:
    """One forward and backward over a batch. The gradient itself is in `Weights.grad`."""

    loss: Tensor  # scalar, or (K,) for replicas, detached: what was minimised, penalties included
    out: Output  # detached, over the whole local batch
    grad: Tensor | None = None  # (P,) differentiable gradient, only where `create_graph` asked for it
