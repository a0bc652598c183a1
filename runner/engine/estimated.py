"""Passes whose gradient is not that of backpropagation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from runner.core import keyed
from runner.core.batch import Batch, Output
from runner.core.mistake import ConfigError
from runner.engine.closure import Closure
from runner.gradient import Gradient

if TYPE_CHECKING:
    from runner.engine.trainer import Trainer


class Estimated(Closure):
    """A closure whose passes ask `run.estimate`, a `runner.gradient.Gradient`."""

    def __call__(self, mask: Tensor | None = None, create_graph: bool = False, **further):
        if create_graph:
            raise ConfigError(
                "gradient: what is differentiated once more (create_graph) has to be backpropagation's: set "
                "gradient=backprop"
            )
        return super().__call__(mask, False, **further)

    def one(self, micro: Batch, share: float, add: bool, create_graph: bool) -> tuple[Tensor, Output, Sequence]:
        run, here, calls = self.run, self.run.draws.where(), 0

        def objective() -> tuple[Tensor, Output]:
            nonlocal calls
            if calls:
                run.draws.go(here)
            calls += 1
            with run.statistics(live=calls == 1):  # frozen from the second on, whatever the pass
                loss, out = run.objective(micro)
            return self.part(loss, micro, share), out

        draw = keyed.generator(run.masks.seeds[0], "gradient", run.masks.step, self.passes)
        loss, out, grad = run.estimate.estimate(run, objective, draw)
        run.masks.forwards = here[0] + 1
        grad = run.precision.up(grad)  # what comes down again; whether it needed that is the estimate's to know
        run.weights.grad.copy_(run.weights.grad + grad if add else grad)
        return loss.detach(), out.detach(), ()


def estimated(run: "Trainer", gradient: Gradient, choices: dict, example: Batch) -> None:
    """Have the run's passes ask this gradient, where it has an `estimate`. Raises ConfigError where it cannot be."""
    if type(gradient).estimate is Gradient.estimate:
        return
    name = f"gradient={choices['gradient']}"
    if run.balance is not None:
        raise ConfigError(f"{name} makes one gradient a pass, and balance={choices['balance']} one of each objective")
    if run.train.compile:
        raise ConfigError(f"{name} cannot look into a compiled model: set train.compile=false")
    try:
        gradient.begin(run, example)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error
    run.estimate, run.closure = gradient, Estimated
