"""Hooks: what is added around the step. Every method is optional; the engine calls only those that are defined."""

import copy
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack

from torch import Tensor

from runner.core.batch import Batch, Output
from runner.core.reach import Begin


class Hook:
    """Base of every hook. `run` is the `runner.engine.trainer.Trainer`; state goes through state_dict and
    load_state_dict.

    Where runs are trained side by side, `loss` is called under one vmap and of `run` it sees count, steps,
    steps_per_epoch and the model only; `batch` and `observe` are called for one replica after another, and what they
    change in a tensor of the hook they change in place: it is a row of what `loss` sees.

    Attributes
    ----------
    replicas : bool
        Whether `gradient` and `step` work on K replicas at once, where vectors are (K, P), their norms and products
        (K,), `run.buffers` have a leading axis and any number of the hook's own may be (K,) too. Default False: they
        are called for one replica after another.
    padding : bool
        Whether `loss` leaves out the samples for which `batch.mask`, where set, is False. Default False: clients of
        different sizes are then not trained side by side.
    places : bool
        Whether it works where every sample has several targets, of tokens or pixels. Default True; what remembers
        samples (`observe`) does not.
    predictions : bool
        Whether `loss` takes the logits for predictions. Default False. True: it is refused with a loss that makes none.
    """

    replicas: bool = False
    padding: bool = False
    places: bool = True
    predictions: bool = False

    def begins(self, steps: int, steps_per_epoch: int) -> Iterable[Begin]:
        """What of it waits for a step, in a run of so many: see `runner.core.reach`."""
        return ()

    def start(self, run) -> None:
        """Once, when the trainer is built and before any state is restored."""

    def before(self, run) -> None:
        """Before a step begins: what depends on `run.count` alone, and is right whichever step came before."""

    def batch(self, run, batch: Batch) -> Batch:
        """Before the first pass: selection, reweighting."""

    def loss(self, run, out: Output, batch: Batch) -> Tensor:
        """A penalty, a scalar, added to the risk in every pass."""

    def observe(self, run, out: Output, batch: Batch) -> None:
        """Once a step with the detached pass at w, and not when the step was skipped: memories, by `batch.index`."""

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


class Hooks:
    """The hooks of a run in their order; a method that a hook does not define costs nothing."""

    def __init__(self, hooks: dict[str, Hook]):
        self.named = hooks

        def having(method: str) -> list:
            own = [hook for hook in hooks.values() if getattr(type(hook), method) is not getattr(Hook, method)]
            return [getattr(hook, method) for hook in own]

        self.starts, self.befores = having("start"), having("before")
        self.batches, self.losses, self.gradients = having("batch"), having("loss"), having("gradient")
        self.observers, self.steps, self.evaluations = having("observe"), having("step"), having("weights")

    def start(self, run) -> None:
        for start in self.starts:
            start(run)

    def before(self, run) -> None:
        for prepare in self.befores:
            prepare(run)

    def batch(self, run, batch: Batch) -> Batch:
        for change in self.batches:
            batch = change(run, batch)
        return batch

    def loss(self, run, out: Output, batch: Batch, loss: Tensor) -> Tensor:
        for penalty in self.losses:
            loss = loss + penalty(run, out, batch)
        return loss

    def observe(self, run, out: Output, batch: Batch) -> None:
        for note in self.observers:
            note(run, out, batch)

    def gradient(self, run, note: bool = True) -> None:
        """note : of a step's first gradient; the hooks' memories take no other in."""
        for change in self.gradients:
            kept = None if note else copy.deepcopy(change.__self__.state_dict())
            change(run)
            if not note:
                change.__self__.load_state_dict(kept)

    def step(self, run) -> None:
        for follow in self.steps:
            follow(run)

    def weights(self, run) -> ExitStack:
        stack = ExitStack()
        for swap in self.evaluations:
            stack.enter_context(swap(run))
        return stack

    def state_dict(self) -> dict:
        return {name: hook.state_dict() for name, hook in self.named.items()}

    def load_state_dict(self, state: dict) -> None:
        for name, hook in self.named.items():
            hook.load_state_dict(state[name])
