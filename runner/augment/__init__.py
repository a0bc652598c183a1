"""Augmentations, on the device and on whole batches; every sample's randomness is keyed by (seed, epoch, index)."""

import math

import numpy as np
import torch
from torch import Tensor

from runner.core import keyed
from runner.core.batch import Batch


class Draw:
    """The random numbers of one batch; of a further view of it others, under the view's name."""

    def __init__(self, seed: int, epoch: int, step: int, index: Tensor, client: int = 0, view: str = ""):
        self.seed, self.epoch, self.step, self.index, self.client, self.view = seed, epoch, step, index, client, view

    def of(self, view: str) -> "Draw":
        """Those of a view."""
        return Draw(self.seed, self.epoch, self.step, self.index, self.client, view)

    def uniform(self, purpose: str, count: int = 1) -> Tensor:
        """(B, count) floats in [0, 1), the same for a sample whatever batch or device it is in."""
        return keyed.uniform(self.seed, self._own(purpose), self.epoch, self.index, count)

    def normal(self, purpose: str, count: int = 1) -> Tensor:
        """(B, count) draws of the standard normal distribution, likewise (Box and Muller 1958)."""
        u = self.uniform(purpose, count + count % 2)
        radius, angle = (-2 * torch.log1p(-u[:, ::2])).sqrt(), 2 * math.pi * u[:, 1::2]
        return torch.cat([radius * angle.cos(), radius * angle.sin()], 1)[:, :count]

    def _own(self, purpose: str) -> str:
        return f"{purpose} {self.view}" if self.view else purpose

    def generator(self, purpose: str) -> np.random.Generator:
        """For what belongs to the batch and not to a sample: keyed by the step within the epoch, and by the client."""
        return keyed.generator(keyed.of_client(self.seed, self.client), self._own(purpose), self.epoch, self.step)


class Augment:
    """Base of every augmentation; either method may be left out.

    A constructor may ask by name for what the data set knows, such as `shape` of an input and its `bounds`.

    Attributes
    ----------
    mixes : whether it mixes samples, and so their targets: a loss that wants several views of a sample has one of each
        alone. Default False.
    views : those that it acts on, of "x", the inputs, and those that the loss wants (`runner.loss.Loss.views`).
        Default null: all.
    """

    mixes: bool = False
    views: list[str] | None = None

    def __init__(self, views: list[str] | None = None):
        self.views = views

    def acts(self, view: str) -> bool:
        """Whether it acts on this view."""
        return self.views is None or view in self.views

    def pixels(self, x: Tensor, draw: Draw) -> Tensor:
        """Raw inputs (B, C, H, W), uint8 or float, before normalisation: geometry."""
        return x

    def batch(self, batch: Batch, draw: Draw) -> Batch:
        """After normalisation: masking and mixing. May return soft targets."""
        return batch


def of_images(shape: tuple[int, ...] | None) -> None:
    """Raises ValueError where inputs of this shape are no images; None: not known."""
    if shape is not None and len(shape) != 3:
        raise ValueError(f"it is for images, and an input of this data set is {len(shape)}-dimensional, {list(shape)}")
