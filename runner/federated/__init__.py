"""Federated algorithms: who trains on what, and how the updates come together."""

from collections.abc import Iterator

from runner.core.reach import Clock
from runner.hook import Hook


class Federated(Hook):
    """Base of every federated algorithm; `federated=none` is plain training.

    silences : keys of the run that it takes no notice of, and what to set instead.

    As a hook it is started with the run, before anything is written, and its state is in the run's checkpoint.
    """

    silences: dict[str, str] = {}

    def among(self, hooks: dict[str, Hook]) -> dict[str, Hook]:
        """The run's own hooks, and what an algorithm adds to them: first what it does in a client's steps, and last
        itself, to be started when they are."""
        return hooks

    def epochs(self, run) -> Iterator[tuple[int, int, str]]:
        """Training samples that are visited in turn, for how many steps, and whose they are, for a message."""
        yield run.loader.sampler.length, run.steps, "an epoch of"

    def describe(self, run) -> str:
        """The amount of work, for the run's heading."""
        return f"{run.steps:,} steps of {run.train.batch_size}"

    def clocks(self, run, part) -> list[Clock]:
        """What counts the steps of an option of the run, once all is started."""
        return [Clock(run.steps, run.steps_per_epoch)]

    def run(self, trainer) -> None:
        """The whole of training."""
        raise NotImplementedError
