"""What travels through a step: a batch of samples, the model's output, and one pass over them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

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
    more: dict[str, Tensor] = field(default_factory=dict)  # (B, ...) what else belongs to the samples: see `put`
    total: int = 0  # samples in the step's whole batch, over all micro-batches and devices; 0 means len(self)
    epoch: int = 0  # of the step, from 0, for losses that change with it; of a client's own data in a federation
    lead: int = 0  # 1 where every tensor has a leading replica axis: (K, B, ...)

    def __len__(self) -> int:
        return self.x.shape[self.lead]

    def put(self, **tensors: Tensor) -> "Batch":
        """The batch with these in `more`, under a name of whoever puts them there: whatever selects, splits or stacks
        samples takes them along. Raises ValueError where there is such a name already: two would mean different things.
        """
        if taken := sorted(tensors.keys() & self.more.keys()):
            raise ValueError(f"the batch has a '{taken[0]}' already, from another part of the run")
        return replace(self, more=self.more | tensors)

    def tensors(self) -> dict[str, Tensor | dict[str, Tensor]]:
        """The fields that hold a tensor, and `more`."""
        values = {name: getattr(self, name) for name in ("x", "y", "index", "domain", "weight", "mask")}
        return {name: value for name, value in values.items() if value is not None} | {"more": self.more}

    def each(self, act: Callable[[Tensor], Tensor], **changed) -> "Batch":
        """The batch with act(tensor) for every tensor that it has, and other fields as given."""
        return Batch.joined([self], lambda values: act(values[0]), **changed)

    @staticmethod
    def joined(batches: "list[Batch]", join: Callable[[list[Tensor]], Tensor], **changed) -> "Batch":
        """One batch with join(tensors) for every tensor that they have; what is no tensor is the first one's.
        Raises ValueError where not all have the same names in `more`."""
        first = batches[0]
        names = [batch.more.keys() for batch in batches]
        if lost := sorted(set().union(*names) - set(names[0]).intersection(*names)):
            raise ValueError(f"'{lost[0]}' is in some of the batches that are joined and not in all")
        own = {name: join([getattr(batch, name) for batch in batches]) for name in first.tensors() if name != "more"}
        more = {name: join([batch.more[name] for batch in batches]) for name in first.more}
        return replace(first, **{**own, "more": more, **changed})

    def select(self, where) -> "Batch":
        """The samples at `where` (a slice, an index or a boolean mask); `total` is kept."""
        where = (slice(None),) * self.lead + (where,)
        return self.each(lambda value: value[where])

    def replica(self, k: int) -> "Batch":
        """One replica's batch out of (K, B, ...)."""
        return self.each(lambda value: value[k], lead=0)

    @staticmethod
    def stack(batches: "list[Batch]") -> "Batch":
        """The batches of K replicas as one (K, B, ...)."""
        return Batch.joined(batches, torch.stack, lead=1)

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
    more: dict[str, Tensor] = field(default_factory=dict)  # (B, ...) what else a model has to say, such as other heads

    def each(self, act: Callable[[Tensor], Tensor]) -> "Output":
        """act of every tensor."""
        more = {name: act(value) for name, value in self.more.items()}
        return Output(act(self.logits), act(self.features), more)

    def detach(self) -> "Output":
        return self.each(Tensor.detach)

    @staticmethod
    def cat(parts: list["Output"], axis: int = 0) -> "Output":
        """The outputs of consecutive parts of a batch as that of the whole; `axis` is that of the samples."""
        if len(parts) == 1:
            return parts[0]
        more = {name: torch.cat([part.more[name] for part in parts], axis) for name in parts[0].more}
        return Output(torch.cat([p.logits for p in parts], axis), torch.cat([p.features for p in parts], axis), more)


@dataclass(slots=True)
class Pass:
    """One forward and backward over a batch. The gradient itself is in `Weights.grad`."""

    loss: Tensor  # scalar, or (K,) for replicas, detached: what was minimised, penalties included
    out: Output  # detached, over the whole local batch
    grad: Tensor | None = None  # (P,) differentiable gradient, only where `create_graph` asked for it
