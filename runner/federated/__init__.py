"""Federated algorithms: who trains on what, and how the updates come together."""

from runner.hook import Hook


class Federated(Hook):
    """Base of every federated algorithm; `federated=none` is plain training.

    As a hook it is started with the run, before anything is written, and its state is in the run's checkpoint.
    """

    def hooks(self) -> dict[str, Hook]:
        """What goes before the run's own hooks: itself, and what it does in a client's steps."""
        return {}

    def describe(self, run) -> str:
        """The amount of work, for the run's heading."""
        return f"{run.steps:,} steps of {run.train.batch_size}"

    def run(self, trainer) -> None:
        """The whole of training."""
        raise NotImplementedError
