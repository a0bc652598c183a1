"""Transforms: surgery on the model, for quantization, sparsity and low rank."""

import math
from collections.abc import Iterable, Iterator
from typing import Annotated

from torch import nn

from runner.core import reach
from runner.core.batch import Batch
from runner.core.schema import Range

Begin = Annotated[float, Range(0, 1, open_high=True, alike=True)]


def opening(begin: float, steps: int) -> int:
    """The first step with quantization, of so many."""
    return math.ceil(begin * steps - 1e-6)  # 0.1 * 30 is more than 3


class Transform:
    """Base of every transform. One that is a `runner.hook.Hook` too becomes the first of the run's hooks.

    Attributes
    ----------
    calibration : int
        Samples of the training split that `prepare` and `convert` are given: a subset keyed by the seed, without
        augmentation, recorded in the result. Default 0: two samples, enough to see shapes.
    begin : float
        Share of the run's steps before which the layers compute in full precision: see `runner.quantization.late`.
        Default 0.
    after : bool
        Whether training is in full precision and `convert` does the rest: with `checkpoint=` nothing is trained.
        Default False.
    maps : bool
        Whether layers may compute with another weight than their own (`runner.transform.maps`). Default True.
    """

    calibration: int = 0
    begin: float = 0.0
    after: bool = False
    maps: bool = True

    def begins(self, steps: int, steps_per_epoch: int) -> Iterable[reach.Begin]:
        """What of it waits for a step, in a run of so many: see `runner.core.reach`."""
        if self.begin:
            yield reach.Begin(f"begin={self.begin:g}", opening(self.begin, steps), "no step is quantized", needed=True)

    def prepare(self, model: nn.Module, batch: Batch) -> nn.Module:
        """Before the weights are made one vector and the optimizer exists. Raises ValueError, in one line."""
        raise NotImplementedError

    def convert(self, model: nn.Module, batch: Batch) -> nn.Module:
        """After training: the model that would be deployed."""
        raise NotImplementedError

    def widths(self, model: nn.Module, batch: Batch) -> Iterator[tuple[int, nn.Module]]:
        """(bits, network) for each of the bit widths that the trained weights serve, to be measured. Default: none."""
        return iter(())

    def frame(self, model: nn.Module, batch: Batch) -> nn.Module:
        """What `convert` gives, in structure alone: its numbers are to be read from a file."""
        return self.convert(model, batch)

    def full(self, model: nn.Module, batch: Batch) -> nn.Module | None:
        """The network in full precision that the result of `convert` is compared with; None where there is none."""
        from runner.quantization.fake import plain

        return plain(model)
