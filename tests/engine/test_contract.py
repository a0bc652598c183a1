"""Optimizers of others: what the loop can train with it does, and what it cannot is one line before anything is run."""

from collections import deque

import pytest
import torch

from runner.command.build import check
from runner.core.mistake import ConfigError
from tests.tiny import SMALL, trainer


class Base(torch.optim.Optimizer):
    """As a library's base class has it."""

    def __init__(self, params, defaults):
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.add_(p.grad, alpha=-group["lr"])
        return loss


class Keywords(Base):
    """Takes keywords for whoever comes after it, and hands its base class what that needs."""

    def __init__(self, params, lr: float = 0.1, momentum: float = 0.9, **kwargs):
        super().__init__(params, {"lr": lr, "momentum": momentum, **kwargs})


class Heir(Keywords):
    def __init__(self, params, own: int, **kwargs):
        super().__init__(params, **kwargs)


class Forgets(Keywords):
    """Sets its gradients to None, as optimizers do that make passes of their own."""

    def step(self, closure=None):
        loss = super().step(closure)
        self.zero_grad(set_to_none=True)
        return loss


class NoGroups(Keywords):
    """Finds its own step size."""

    def __init__(self, params, max_lr: float = 0.1, **kwargs):
        Base.__init__(self, params, {"max_lr": max_lr})


class NoRate(Keywords):
    """Finds its own step size where it is given none."""

    def __init__(self, params, lr: float | None = None, **kwargs):
        super().__init__(params, lr=lr)


class Modes(Keywords):
    def train(self): ...
    def eval(self): ...


class Curvature(Keywords):
    """Differentiates the gradient."""

    def step(self, closure=None):
        with torch.enable_grad():
            closure()
            group = self.param_groups[0]["params"]
            torch.autograd.grad([p.grad for p in group], group, [torch.ones_like(p) for p in group])


class Deaf(Keywords):
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.data.add_(p.grad, alpha=-0.1)


class Ignoring(Keywords):
    def step(self, closure=None): ...


class Idle(Keywords):
    """Does its work elsewhere, as those that are fused with the backward pass."""

    def step(self, closure=None):
        with torch.enable_grad():
            return closure()


class Strict(Keywords):
    """Needs something of the loss that a detached number has not."""

    def step(self, closure=None):
        with torch.enable_grad():
            closure().backward()


class Blind(Keywords):
    """Calls its closure where gradients are off."""

    @torch.no_grad()
    def step(self, closure=None):
        return closure()


class Rehouses(Keywords):
    def step(self, closure=None):
        with torch.enable_grad():
            closure()
        for p in self.param_groups[0]["params"]:
            p.data = p.data - 0.1 * p.grad


class Secret:
    pass


class Gathers(Keywords):
    """Moves nothing before it has seen some gradients, and starts with a learning rate of its own."""

    def step(self, closure=None):
        self.seen = getattr(self, "seen", 0) + 1
        rates = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] *= (self.seen > 10) if self.seen < 12 else 1
        try:
            return super().step(closure)
        finally:
            for group, lr in zip(self.param_groups, rates, strict=True):
                group["lr"] = lr


class Warms(Keywords):
    """Its first step has a rate of its own."""

    def step(self, closure=None):
        if not hasattr(self, "begun"):
            self.begun, self.param_groups[0]["lr"] = True, 0.1
        return super().step(closure)


class Hoards(Keywords):
    """Keeps in its state what cannot be saved safely."""

    def step(self, closure=None):
        self.state[self.param_groups[0]["params"][0]]["secret"] = Secret()
        return super().step(closure)


class Matrices(Keywords):
    def __init__(self, params, lr: float = 0.1):
        params = list(params)
        if any(p.dim() != 2 for p in params):
            raise TypeError("matrices only")
        super().__init__(params, lr)


class Queues(Keywords):
    """Keeps past gradients in a queue, as AdaShift does."""

    def step(self, closure=None):
        loss = super().step(closure)
        for p in self.param_groups[0]["params"]:
            self.state[p].setdefault("past", deque(maxlen=2)).append(p.grad.clone())
        return loss


class Own(Keywords):
    """Has its own learning rate."""

    def step(self, closure=None):
        self.param_groups[0]["lr"] = 0.1
        return super().step(closure)


def made(name: str, *words: str):
    return trainer(*SMALL, f"optim._target_=tests.engine.test_contract.{name}", "optim.lr=0.1", *words)


BARE = ["~optim.weight_decay", "~optim.dampening", "~optim.nesterov"]


@pytest.mark.parametrize("name", ["Gathers", "Warms"])
def test_what_takes_some_steps_to_begin_is_neither_refused_nor_said_to_be_deaf(name):
    assert made(name, *BARE).notices == []


@pytest.mark.parametrize("name", ["Keywords", "Forgets"])
def test_keywords_are_followed_to_the_base_class_and_it_trains(name):
    run = made(name, *BARE)
    assert run.notices == []
    losses = []
    for batch in [next(run.loader.epoch(0))] * 5:
        losses.append(run.step(batch).item())
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]
    w = run.weights.clone()
    run.step(batch)
    assert not torch.equal(run.weights.data, w)


def test_a_base_classs_own_arguments_are_neither_missing_nor_offered():
    node = {"_target_": "tests.engine.test_contract.Keywords"}
    check(node, "optim")
    check({"_target_": "tests.engine.test_contract.Heir", "own": 1, "momentum": 0.5}, "optim")
    with pytest.raises(ConfigError, match="optim.own is missing"):
        check({"_target_": "tests.engine.test_contract.Heir"}, "optim")
    with pytest.raises(ConfigError) as error:
        check(node | {"momentun": 0.5}, "optim")
    assert "Did you mean 'optim.momentum'?" in str(error.value) and "defaults" not in str(error.value)
    with pytest.raises(ConfigError, match="optim.momentum=fast: must be a number"):
        check({"_target_": "tests.engine.test_contract.Heir", "own": 1, "momentum": "fast"}, "optim")


@pytest.mark.parametrize(
    "name, why",
    [
        ("Modes", r"train\(\) and eval\(\)"),
        ("Curvature", "differentiates the gradient, of which the loop keeps no graph"),
        ("Deaf", "positional argument"),
        ("Ignoring", "must call the closure"),
        ("Idle", "moves no weight"),
        ("Strict", "differentiates the gradient"),
        ("Blind", "where gradients are off"),
        ("Rehouses", "replaces the weights' tensors"),
        ("Hoards", "has a Secret in its state"),
        ("Queues", "has a deque in its state"),
    ],
)
def test_what_the_loop_cannot_do_is_one_line(name, why):
    with pytest.raises(ConfigError, match=why) as error:
        made(name, *BARE)
    line = str(error.value)
    assert line.startswith(f"optim: {name} (") and "\n" not in line


def test_groups_without_a_learning_rate_are_one_line():
    with pytest.raises(
        ConfigError, match="optim: NoGroups .* has no 'lr' in its param_groups, which the schedule sets"
    ):
        trainer(*SMALL, "optim._target_=tests.engine.test_contract.NoGroups", "~optim.lr", "~optim.momentum", *BARE)


def test_a_learning_rate_of_none_is_one_line():
    words = [*SMALL, "optim._target_=tests.engine.test_contract.NoRate", "~optim.momentum", *BARE]
    with pytest.raises(ConfigError, match="optim: NoRate .* has no number for 'lr' in its groups.*set optim.lr"):
        trainer(*words, "optim.lr=null")
    trainer(*words, "optim.lr=0.1")


def test_a_constructor_that_refuses_the_parameters_is_one_line():
    with pytest.raises(ConfigError, match="optim: Matrices cannot be built: TypeError: matrices only") as error:
        made("Matrices", "~optim.momentum", *BARE)
    assert "\n" not in str(error.value)


def test_a_learning_rate_that_is_not_read_is_said():
    (line,) = made("Own", *BARE).notices
    assert line.startswith("optim: Own (") and line.endswith("in its first 3 steps: schedules may not act")


@pytest.mark.parametrize("name", ["Adam", "Adagrad", "RMSprop", "LBFGS", "Rprop", "NAdam"])
def test_torchs_own_train_and_leave_the_random_numbers_alone(name):
    words = [*SMALL, "~optim.momentum", *BARE, "optim.lr=1e-3"]
    run = trainer(*words, f"optim._target_=torch.optim.{name}")
    state = torch.get_rng_state()
    assert run.notices == []
    trainer(*words, "optim._target_=torch.optim.SGD")
    assert torch.equal(torch.get_rng_state(), state)  # as if nothing had been tried
    batch = next(run.loader.epoch(0))
    first = run.step(batch)
    for _ in range(3):
        last = run.step(batch)
    assert last < first
