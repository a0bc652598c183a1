"""What the loop asks of an optimizer, tried on copies of the weights before anything is written.

An ordinary one takes a closure, which fills the gradients and returns the loss, and moves the weights where they are,
by a learning rate that its groups hold. One that does not is refused in a line that says what it lacks; whose it is
does not matter.
"""

import io
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from runner.core import checkpoint
from runner.core.batch import Batch
from runner.core.mistake import ConfigError
from runner.engine.closure import Asked
from runner.engine.trial import guard, named

if TYPE_CHECKING:
    from runner.engine.trainer import Trainer

STEPS = 3
PATIENCE = 100  # steps in which an optimizer that gathers gradients first, as AdaShift does, must have moved a weight
SIZE = 64  # elements of a flat optimizer's vectors that are tried, where it does not ask what they are

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def check(optimizer: torch.optim.Optimizer, make: Make, params: list[nn.Parameter]) -> tuple[list[str], set[str]]:
    """Raise ConfigError where the loop cannot train with this optimizer; returns lines about what has no effect, and
    what it asks for beside gradients: "value", "hvp".

    make : builds another one for other parameters. params : those that it is to train.
    """
    few = getattr(optimizer, "flat", False) and not hasattr(optimizer, "layouts")

    def refuse(why: str) -> ConfigError:
        return ConfigError(f"optim: {named(optimizer)} {why}; choose another, such as optim=adamw")

    if not all(isinstance(group["lr"], int | float | Tensor) for group in optimizer.param_groups):
        raise refuse("has no number for 'lr' in its groups, which the schedule multiplies: set optim.lr")
    if callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None)):
        raise refuse("has train() and eval(): it evaluates other weights than it trains, between which no run switches")
    states = checkpoint.random_states()
    try:
        with guard("optim", optimizer, "fails in step(closure)"):
            tried = Trial(make, params, few)
        if tried.looked and not getattr(optimizer, "looks", False):
            asked = " and ".join(f"closure.{what}" for what in sorted(tried.looked))
            raise ConfigError(f"optim: {named(optimizer)} asks for {asked}: it must say `looks = True`")
        if not tried.asked:
            raise ConfigError(f"optim: {named(optimizer)}.step must call the closure, which makes the gradient")
        if tried.moved_house:
            raise refuse("replaces the weights' tensors, which must be changed in place")
        lr = max(group["lr"] for group in optimizer.param_groups)
        if lr > 0 and not tried.moved:
            raise refuse(f"moves no weight in {PATIENCE} steps with a gradient")
        if (what := unsafe(tried.state)) is not None:
            raise refuse(f"has {what} in its state, which a checkpoint that is safe to open cannot hold")
        with guard("optim", optimizer, "fails in load_state_dict, which resumes a run"):
            make(tried.params).load_state_dict(tried.state)
        checkpoint.restore_random_states(states)
        if lr > 0 and Trial(make, params, few, factor=0.5).end == tried.end:
            first = f"in its first {tried.steps} steps"
            line = f"optim: {named(optimizer)} does not go by the 'lr' of its groups {first}: schedules may not act"
            return [line], tried.looked
    except ConfigError as error:
        if _differentiates(error.__cause__):
            raise refuse(
                f"differentiates the gradient, of which the loop keeps no graph ({error.__cause__})"
            ) from error
        raise
    finally:
        checkpoint.restore_random_states(states)
    return [], tried.looked


def looks(run: "Trainer", looked: set[str], choices: dict, example: Batch) -> None:
    """Raise ConfigError where this run has not what the optimizer asks for. looked : as `check` found it."""
    name = f"optim={choices['optim']}"
    if not looked:
        return
    for group, other in (("balance", run.balance), ("gradient", run.estimate)):
        if other is not None:
            raise ConfigError(
                f"{name} asks for {' and '.join(sorted(looked))} of the one loss that backpropagation "
                f"differentiates, and {group}={choices[group]} has another gradient"
            )
    if run.loss.turns:
        raise ConfigError(f"{name} asks for {' and '.join(sorted(looked))}, and loss={choices['loss']} has players")
    if "hvp" not in looked:
        return
    if run.train.compile:
        raise ConfigError(f"{name} differentiates twice, which a compiled model cannot: set train.compile=false")
    asked, here = Asked(run, example), run.draws.where()
    try:
        asked.hvp([torch.zeros_like(p) for group in run.optimizer.param_groups for p in group["params"]])
    except RuntimeError as error:
        why = str(error).splitlines()[0]
        raise ConfigError(f"{name} differentiates twice, which some layer cannot ({why})") from error
    finally:
        run.draws.go(here)


def _differentiates(error: BaseException | None) -> bool:
    return isinstance(error, RuntimeError) and any(w in str(error) for w in ("grad_fn", "create_graph", "require grad"))


def unsafe(state: dict) -> str | None:
    """What keeps this state from being saved and loaded again, or None."""
    small = tree_map(lambda value: torch.empty(0) if isinstance(value, Tensor) else value, state)
    file = io.BytesIO()
    try:
        torch.save(small, file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception:
        return f"a {next(odd(small), 'container')}"
    return None


def odd(value: Any) -> Iterator[str]:
    """The classes in a state that are neither tensors nor plain."""
    if type(value) in (dict, OrderedDict, defaultdict):
        value = list(value.values())
    if type(value) in (list, tuple):
        for part in value:
            yield from odd(part)
    elif type(value) not in (Tensor, int, float, str, bool, bytes, type(None)):
        yield type(value).__name__


class Tried:
    """What the optimizer is given instead of `runner.engine.closure.Asked`, of a bowl around 0."""

    def __init__(self, trial: "Trial"):
        self.trial = trial

    def __call__(self) -> Tensor:
        return self.trial.closure()

    def value(self) -> Tensor:
        self.trial.looked.add("value")
        return self.trial.params[0].new_tensor(1.0).detach()

    def hvp(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        self.trial.looked.add("hvp")
        return [vector.detach().mul(1e-2) for vector in vectors]


class Trial:
    """Some steps on copies of the parameters, with a gradient that points away from 0."""

    def __init__(self, make: Make, params: list[nn.Parameter], few: bool, factor: float = 1.0):
        self.params = [nn.Parameter((p.detach().flatten()[:SIZE] if few else p.detach()).clone()) for p in params]
        self.grads = [p.detach().mul(1e-2).add(1e-4) for p in self.params]
        for p in self.params:
            p.grad = torch.zeros_like(p)
        self.asked, self.looked = 0, set()
        places = [p.data_ptr() for p in self.params]
        self.start = self.sums()
        optimizer = make(self.params)
        rates = [group["lr"] * factor for group in optimizer.param_groups]
        self.steps = 0
        while self.steps < (STEPS if not any(rates) or (self.steps and self.moved) else PATIENCE):
            for group, lr in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = lr
            optimizer.step(Tried(self))
            self.steps += 1
            self.end = self.sums()
            self.moved = self.end != self.start
            if not self.asked:
                break
        self.moved_house = places != [p.data_ptr() for p in self.params]
        self.state = optimizer.state_dict()

    def closure(self) -> Tensor:
        if not torch.is_grad_enabled():
            raise RuntimeError("the closure is called where gradients are off: wrap it in torch.enable_grad()")
        self.asked += 1
        for p, grad in zip(self.params, self.grads, strict=True):
            p.grad = grad.clone()
        return self.params[0].new_tensor(1.0).detach()

    def sums(self) -> list[float]:
        """What tells one set of values from another."""
        return torch.stack([p.detach().double().square().sum() for p in self.params]).tolist()
