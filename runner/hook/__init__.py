"""Hooks: what is added around the step. Every method is optional; the engine calls only those that are defined."""

from contextlib import AbstractContextManager

from torch import Tensor

from runner.batch import Batch, Output


class Hook:
    """Base of every hook. `run` is the `runner.trainer.Trainer`; state goes through state_dict / load_state_dict."""

    def start(self, run) -> None:
        """Once, when the trainer is built and before any state is restored."""

    def batch(self, run, batch: Batch) -> Batch:
        """Before the first pass: selection, reweighting."""

    def loss(self, run, out: Output, batch: Batch) -> Tensor:
        """A penalty, a scalar, added to the risk in every pass."""

    def gradient(self, run) -> None:
        """After the sharpness method, before the optimizer: clipping, noise, surgery on `run.weights.grad`."""

    def step(self, run) -> None:
        """After the optimizer's update: averages, masks. Not called for a skipped step."""

    def weights(self, run) -> AbstractContextManager:
        """Around evaluation: what evaluate() sees."""

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        pass
