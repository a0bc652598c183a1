"""Data sets: what is loaded, how it is split, and how it is damaged on purpose."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Images(Protocol):
    """Images that are decoded when asked for, because they do not fit as one tensor."""

    def __len__(self) -> int: ...
    def select(self, index: Tensor) -> "Images": ...
    def get(self, i: int, seed: int | None) -> Tensor:
        """(C, H, W) uint8; `seed` drives random cropping in training and is None in evaluation."""


@dataclass
class Split:
    """N samples: raw inputs (uint8 pixels or floats, before normalisation) and targets."""

    x: Tensor | Images  # (N, *shape)
    y: Tensor  # (N,) int64 class ids, (N, C) multi-hot floats, or (N,) floats
    domain: Tensor | None = None  # (N,) int64

    def __len__(self) -> int:
        return len(self.y)

    def select(self, index: Tensor) -> "Split":
        x = self.x[index] if isinstance(self.x, Tensor) else self.x.select(index)
        return Split(x, self.y[index], None if self.domain is None else self.domain[index])
