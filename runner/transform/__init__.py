"""Transforms: changes of any model, as it is built or when its weights are there."""

from collections.abc import Iterable
from typing import Literal

from torch import nn

from runner.core.batch import Batch
from runner.core.reach import Begin


class Transform:
    """Base of every transform. One that is a `runner.hook.Hook` too joins the run's hooks, before those of `hook`.

    Attributes
    ----------
    when : build, what the network is: before the weights of `checkpoint=` are loaded, which have to be of such a
        network. adapt, what is put upon them: after that. Default build. Either comes before quantization.
    """

    when: Literal["build", "adapt"] = "build"

    def prepare(self, model: nn.Module, batch: Batch) -> nn.Module:
        """The changed model, in place or anew; batch : two training samples. Raises ValueError, in one line, where it
        has nothing to change."""
        raise NotImplementedError

    def notices(self, run) -> list[str]:
        """What is worth a line before the first step."""
        return []

    def begins(self, steps: int, steps_per_epoch: int) -> Iterable[Begin]:
        """What of it waits for a step, in a run of so many: see `runner.core.reach`."""
        return ()
