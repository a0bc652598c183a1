"""The passes of one step are one random function, whoever draws, and only the first one leaves anything behind."""

import random
from itertools import islice

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from runner.core.precision import LossScale
from runner.engine.trainer import Closure
from runner.hook import Hook, Hooks
from runner.model.mlp import Mlp
from tests.tiny import trainer


class Noise(nn.Module):
    """A layer of a third party, which draws in training."""

    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def forward(self, x):
        return x * self.draw(x) if self.training else x


def drop_path():
    from timm.layers import DropPath

    return DropPath(0.5)


DRAWS = {
    "dropout": lambda: nn.Dropout(0.5),
    "functional dropout": lambda: Noise(lambda x: F.dropout(torch.ones_like(x), 0.5)),
    "dropout1d": lambda: nn.Sequential(nn.Unflatten(1, (8, 2)), nn.Dropout1d(0.5), nn.Flatten()),
    "dropout2d": lambda: nn.Sequential(nn.Unflatten(1, (8, 2, 1)), nn.Dropout2d(0.5), nn.Flatten()),
    "dropout3d": lambda: nn.Sequential(nn.Unflatten(1, (8, 2, 1, 1)), nn.Dropout3d(0.5), nn.Flatten()),
    "alpha dropout": lambda: nn.AlphaDropout(0.5),
    "feature alpha dropout": lambda: nn.Sequential(nn.Unflatten(1, (8, 2)), nn.FeatureAlphaDropout(0.5), nn.Flatten()),
    "rrelu": lambda: nn.Sequential(nn.Linear(16, 16), nn.RReLU()),
    "gaussian noise": lambda: Noise(torch.randn_like),
    "stochastic depth": drop_path,
    "numpy": lambda: Noise(lambda x: np.random.randn()),
    "python": lambda: Noise(lambda x: random.random() < 0.5),
    "none": nn.Identity,
}


class Drawing(Mlp):
    def __init__(self, shape, classes, hidden: list[int], layer: str = "none"):
        super().__init__(shape, classes, hidden)
        self.body.append(DRAWS[layer]())


MODEL = ["dataset=digits", "dataset.subset=200", "train.batch_size=32", "train.epochs=2", "model.hidden=[16]"]
MODEL += ["model._target_=tests.engine.test_passes.Drawing"]
WAYS = {"whole": [], "accumulated": ["train.accumulate=3"], "m": ["sharpness.m=7", "train.accumulate=2"]}


def states():
    kind, keys, *rest = np.random.get_state()
    return torch.get_rng_state().tolist(), keys.tolist(), rest, random.getstate()


def advance(run, steps: int = 3):
    for batch in islice(run.loader.epoch(0), steps):
        run.step(batch)
    return run.weights.clone(), states()


def gradients(run, batch) -> list[torch.Tensor]:
    """Those of four passes over one batch at one place, as a sharpness method would ask for them."""
    closure, found = Closure(run, batch, alone=False), []
    for _ in range(4):
        closure()
        found.append(run.weights.grad.clone())
    return found


@pytest.mark.parametrize("layer", DRAWS)
def test_a_radius_of_zero_is_the_plain_gradient_whoever_draws(layer):
    """Bit for bit, over steps, and the global generators end where those of one pass end."""
    words = [*MODEL, f"+model.layer='{layer}'"]
    plain = advance(trainer(*words, "optim=sgd"))
    around = advance(trainer(*words, "optim=sam", "sharpness.rho=0", "optim.weight_decay=0.0005"))
    assert torch.equal(plain[0], around[0])
    assert plain[1] == around[1]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layer", ["dropout", "functional dropout", "numpy"])
def test_every_pass_of_a_part_draws_the_same_and_every_part_its_own(layer, way):
    run = trainer(*MODEL, f"+model.layer='{layer}'", "sharpness=sam", *WAYS[way])
    batch = next(run.loader.epoch(0))
    first, *rest = gradients(run, batch)
    assert first.abs().max() > 0
    assert all(torch.equal(first, other) for other in rest)
    assert not torch.equal(gradients(run, batch)[0], first)  # the next part of the step, and its micro-batches


def test_micro_batches_of_a_pass_have_masks_of_their_own():
    run = trainer(*MODEL, "+model.layer=dropout", "train.accumulate=2")
    seen = []
    run.model.body[-1].register_forward_hook(lambda module, inputs, out: seen.append(out == 0))
    batch = next(run.loader.epoch(0))
    same = batch.select(torch.arange(16).repeat(2))  # two micro-batches of the same samples
    gradients(run, same)
    assert len(seen) == 8
    assert not torch.equal(seen[0], seen[1])
    assert all(torch.equal(a, b) for a, b in zip(seen[:2] * 3, seen[2:], strict=True))


@pytest.mark.parametrize("option", ["adapt", "eq_net", "gaqat"])
def test_quantized_passes_draw_the_same(option):
    """AdaPT rounds at random; the other two make passes of their own."""
    words = [*MODEL, "+model.layer='functional dropout'", f"quantization={option}", "optim.weight_decay=0.0005"]
    words = [word.replace("[16]", "[16,16]") for word in words]
    ends = []
    for own in (["optim=sgd"], ["optim=sam", "sharpness.rho=0"]):
        run = trainer(*words, *own)
        if option == "gaqat":  # adds its two gradients of a step size
            run.hooks.gradients.clear()
        ends.append(advance(run))
    assert torch.equal(ends[0][0], ends[1][0]) and ends[0][1] == ends[1][1]


def test_resumed_in_the_middle_is_the_same_bit_for_bit():
    words = [*MODEL, "+model.layer='functional dropout'", "optim=sam", "sharpness.m=8"]
    expected = advance(trainer(*words), 4)
    half = trainer(*words)
    advance(half, 2)
    state = half.state_dict()
    rest = trainer(*words)
    torch.manual_seed(99)
    rest.load_state_dict(state)
    for batch in islice(rest.loader.epoch(0), 2, 4):
        rest.step(batch)
    assert torch.equal(rest.weights.data, expected[0])
    assert states() == expected[1]


# ---- an optimizer that asks for several gradients a step


class Thrice(torch.optim.SGD):
    """Evaluates the closure three times at the same place, as a line search may."""

    def step(self, closure):
        self.seen = []
        for _ in range(3):
            with torch.enable_grad():
                loss = closure()
            self.seen.append((loss.clone(), torch.cat([p.grad.flatten() for p in self.param_groups[0]["params"]])))
        super().step()


class ByLoss(torch.optim.SGD):
    """Steps as long as the loss is high."""

    def step(self, closure):
        with torch.enable_grad():
            loss = closure()
        for group in self.param_groups:
            group["lr"] *= loss.item()
        super().step()
        return loss


class Counting(Hook):
    """Noise on the gradient, and a memory of how often it was asked."""

    def __init__(self):
        self.count = 0

    def gradient(self, run):
        run.weights.grad.mul_(1 + 0.1 * torch.randn_like(run.weights.grad))
        self.count += 1

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


@pytest.mark.parametrize("words", [[], ["sharpness=sam"], ["sharpness=sam", "sharpness.m=8"]], ids=str)
def test_an_optimizer_sees_one_function_and_the_step_leaves_behind_what_one_gradient_does(words):
    words = ["dataset=digits", "dataset.subset=100", "train.batch_size=32", "model=resnet20", *words]
    words += ["train.accumulate=2", "loss=elr"]
    ends = []
    for kind in (torch.optim.SGD, Thrice):
        run = trainer(*words)
        run.model.body.append(Noise(torch.randn_like))
        run.optimizer = kind(run.weights.parameters, lr=0.1)
        run.hooks = Hooks({"counting": Counting()})
        loss = run.step(next(run.loader.epoch(0)))
        ends.append((run.state_dict()["model"], run.state_dict()["loss"], run.sums(), run.hooks.state_dict(), loss))
        ends[-1] += (states(),)
    (value, gradient), *others = run.optimizer.seen
    assert all(torch.equal(value, v) and torch.equal(gradient, g) for v, g in others)
    leaves = [torch.utils._pytree.tree_leaves(end) for end in ends]
    assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(*leaves, strict=True))


class Ahead(torch.optim.SGD):
    """Asks for its gradient somewhere else than at w."""

    @torch.no_grad()
    def step(self, closure):
        for p in self.param_groups[0]["params"]:
            p.add_(1.0)
        with torch.enable_grad():
            closure()
        super().step()


def test_an_overflow_away_from_w_leaves_the_weights_at_w():
    run = trainer("dataset=digits", "model.hidden=[16]", "train.precision=fp16", "loss=elr")
    run.optimizer = Ahead(run.weights.parameters, lr=0.1)
    run.precision.scale = LossScale(2.0**127)
    before, memory = run.weights.clone(), [buffer.clone() for buffer in run.loss.buffers()]
    batch = next(run.loader.epoch(0))
    assert run.step(batch) is None
    assert torch.equal(run.weights.data, before)
    run.precision.scale = LossScale(1.0)
    run.step(batch)
    assert any(not torch.equal(a, b) for a, b in zip(run.loss.buffers(), memory, strict=True))  # noted after all


@pytest.mark.parametrize("layer", ["functional dropout", "numpy", "python"])
def test_what_a_client_draws_is_its_own_whatever_was_drawn_before(layer):
    words = [*MODEL, f"+model.layer='{layer}'", "federated=fedavg", "federated.clients=2", "federated.rounds=1"]
    run = trainer(*words)
    clients, start = run.hooks.named["federated"].clients, run.weights.clone()
    deltas = []
    for _ in range(2):
        deltas.append(clients.alone(1, 0, start, [buffer.clone() for buffer in clients.buffers]).delta)
        torch.rand(1), np.random.rand(), random.random()
    assert torch.equal(*deltas)
