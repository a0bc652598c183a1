"""Runs side by side equal runs alone, for every option: to 1e-10 after 20 steps in float64."""

from functools import lru_cache
from itertools import islice

import numpy as np
import pytest
import torch
from torch import Tensor

from runner.core.dropout import Dropout
from runner.engine.replicas import Broken, Replicas, Unpackable
from runner.hook import Hook
from runner.sharpness import Sharpness
from scripts import packing
from tests.tiny import SMALL, trainer

APART = {  # and why
    ("hook", "smooth_adversarial"): "a hook's loss reads run.",
    ("gradient", "forward"): "Forward makes the gradient of one run",
}
EVERY = [(group, option) for group in packing.GROUPS for option in packing.forms(group) if option not in packing.HEAVY]
STEPS = 20


def batches(run):
    for epoch in range(100):
        yield from run.loader.epoch(epoch)


def advance(run, steps: int) -> None:
    for batch in islice(batches(run), steps):
        run.step(batch)


def doubled(cells: list[list[str]]) -> list:
    return packing.trainers(cells, dtype=torch.float64)


def assert_same(a, b, where: str = "state", atol: float = 1e-10) -> None:
    """Two states, to the last tensor; the same types, so that a checkpoint of one is one of the other."""
    assert type(a) is type(b), where
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype and a.shape == b.shape, where
        np.testing.assert_allclose(b.detach().numpy(), a.detach().numpy(), rtol=0, atol=atol, err_msg=where)
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}", atol)
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{number}]", atol)
    elif isinstance(a, float):
        assert a == pytest.approx(b, abs=atol), where
    else:
        assert a == b, where


def assert_pack_equals_alone(make, cells: list[list[str]], steps: int = STEPS, atol: float = 1e-10) -> None:
    alone = make(cells)
    for run in alone:
        advance(run, steps)
    members = make(cells)
    run = Replicas(members)
    advance(run, steps)
    run.scatter()
    start = make(cells[:1])[0].weights.data
    assert (alone[0].weights.data - start).abs().max() > 1e-4  # something was learned
    for one, member in zip(alone, members, strict=True):
        assert_same(one.state_dict(), member.state_dict(), atol=atol)


@pytest.mark.parametrize("group, option", EVERY, ids=[f"{group}={option}" for group, option in EVERY])
def test_packed_equals_alone(group, option):
    if why := APART.get((group, option)):
        assert packing.why_not(group, option).startswith(why)
        return
    own, changed = packing.words(group, option), packing.numbers(group, option)
    cells = [[*own, "seed=0"], [*own, "seed=1", *changed], [*own, "seed=2", "optim.lr=0.003", *changed[:1]]]
    assert_pack_equals_alone(doubled, cells)


def test_the_numbers_of_options_are_varied():
    """The test above would pass for a method whose numbers it never changed."""
    assert packing.numbers("loss", "poly") == ["loss.epsilon=1.8", "loss.label_smoothing=0.05"]
    assert packing.numbers("sharpness", "asam") == ["sharpness.rho=0.45", "sharpness.eta=0.009000000000000001"]
    assert [word.split("=")[0] for word in packing.numbers("optim", "sgd")] == [
        "optim.lr", "optim.momentum", "optim.weight_decay",
    ]  # fmt: skip
    assert packing.numbers("hook", "ema") == ["hook.ema.decay=0.8991"]


TOGETHER = {
    "everything at once": [
        "model=resnet20", "loss=poly_focal", "optim=sam", "hook=[ema,clip]", "augment=[crop_flip,cutout,mixup]",
        "augment.cutout.size=4", "train.accumulate=2", "sharpness.m=4", "schedule=multistep",
    ],
    "nesterov": ["optim.nesterov=true", "model.hidden=[16]"],
    "plain": ["optim.momentum=0", "optim.weight_decay=0", "model.hidden=[16]"],
    "weighted adamw": ["optim=adamw", "risk=top_k", "loss=mse", "model.hidden=[16]"],
    "channels last": ["model=cnn", "model.widths=[4,8]", "model.hidden=16", "train.channels_last=true"],
    "dropout": ["model=wrn_16_8", "model.widen=1", "model.dropout=0.3"],
    "streams of their own": ["dataset.noise=symmetric", "model.hidden=[16]", "train.drop_last=true"],
}  # fmt: skip


@pytest.mark.parametrize("name", TOGETHER)
def test_combinations(name):
    common = ["train.batch_size=8", "train.epochs=8", "device=cpu", *TOGETHER[name]]
    differ = {
        "everything at once": [["sharpness.rho=0.1", "loss.gamma=1"], ["hook.clip.norm=0.2", "hook.ema.decay=0.5"]],
        "weighted adamw": [["optim.betas=[0.8,0.99]", "optim.eps=1e-6"], ["optim.weight_decay=0.1"]],
    }.get(name, [["optim.lr=0.01"], ["optim.lr=0.05"]])
    cells = [[*common, f"seed={seed}", *words] for seed, words in enumerate(differ, start=3)]
    assert_pack_equals_alone(doubled, cells, steps=6 if name == "everything at once" else STEPS)


def test_data_that_differ_between_the_runs():
    """Label noise and validation splits of their own, one copy of the inputs."""

    def make(cells):
        return [trainer(*cell, double=True) for cell in cells]

    cells = [
        [*SMALL, f"seed={seed}", "dataset.noise=symmetric", f"dataset.noise_rate={rate}"]
        for seed, rate in enumerate([0.1, 0.4, 0.7])
    ]
    assert_pack_equals_alone(make, cells)
    members = make(cells)
    assert Replicas(members).loader.base is members[2].loader._train.base


def test_bf16_is_packed_too():
    cells = [[*SMALL, f"seed={seed}", "train.precision=bf16"] for seed in range(2)]
    alone, members = ([trainer(*cell) for cell in cells] for _ in range(2))
    start = alone[1].weights.clone()
    run = Replicas(members)
    for one in (run, *alone):
        advance(one, 2)
    way = alone[1].weights.data - start
    assert (run.weights.data[1] - alone[1].weights.data).norm() < 0.1 * way.norm()


def test_a_pack_of_many_shares_one_epoch_with_runs_alone():
    """Sums, lr, position: what the epoch's line is made of."""
    cells = [[*SMALL, f"seed={seed}", f"optim.lr={0.01 * (1 + seed)}"] for seed in range(5)]
    alone = [trainer(*cell, double=True) for cell in cells]
    members = [trainer(*cell, double=True) for cell in cells]
    run = Replicas(members)
    for one in (run, *alone):
        advance(one, 3)
    run.scatter()
    for one, member in zip(alone, members, strict=True):
        assert member.count == 3
        torch.testing.assert_close(member.sums(), one.sums(), rtol=1e-12, atol=0)
        assert member.optimizer.param_groups[0]["lr"] == one.optimizer.param_groups[0]["lr"]


def test_a_replica_that_diverges_leaves_the_others_untouched():
    cells = [[*SMALL, f"seed={seed}", "loss=mse", f"optim.lr={lr}"] for seed, lr in enumerate([0.01, 1e8, 0.02])]
    alone = [trainer(*cells[k], double=True) for k in (0, 2)]
    members = [trainer(*cell, double=True) for cell in cells]
    run = Replicas(members)
    with pytest.raises(Broken) as broken:
        advance(run, 30)
    ((k, error),) = broken.value.errors.items()
    assert k == 1
    with pytest.raises(type(error)) as expected:
        advance(trainer(*cells[1], double=True), 30)
    assert str(error) == str(expected.value)  # the same step, the same tensor at fault
    run.scatter()
    rest = Replicas([members[0], members[2]])
    begun = rest.count
    for batch in islice(batches(rest), begun, STEPS):
        rest.step(batch)
    rest.scatter()
    for one, member in zip(alone, rest.members, strict=True):
        advance(one, STEPS)
        assert_same(one.state_dict(), member.state_dict())


def test_snapshot_and_restore_undo_steps():
    common = [*SMALL, "hook=[ema,saf]", "hook.saf.start=0", "train.batch_size=100", "optim=sam"]
    run = Replicas([trainer(*common, f"seed={seed}", f"sharpness.rho=0.{seed + 1}", double=True) for seed in range(3)])
    advance(run, 2)
    before = run.snapshot()
    weights, average = run.weights.clone(), run.hooks.named["ema"].average.clone()
    memory = run.hooks.named["saf"].memory.clone()
    advance(run, 3)
    after = run.weights.clone()
    for _ in range(2):
        run.restore(before)
        assert torch.equal(run.weights.data, weights)
        assert torch.equal(run.hooks.named["ema"].average, average)
        assert torch.equal(run.hooks.named["saf"].memory, memory)
        advance(run, 3)
        assert torch.equal(run.weights.data, after)


# ---- what is refused, never done wrong


class Loner(Sharpness):
    def __call__(self, closure, weights):
        return closure()


class Coupled(Hook):
    """A norm over whatever it is given: alone, over one run's gradient."""

    def gradient(self, run):
        torch.nn.utils.clip_grad_norm_([run.weights.slices[0]], 0.01)


class Peeking(Hook):
    def loss(self, run, out, batch):
        return 0.1 * run.weights.data.square().sum()


class Branching(Hook):
    def loss(self, run, out, batch):
        return out.logits.sum() if out.logits.sum() > 0 else -out.logits.sum()


class Drawing(Hook):
    def loss(self, run, out, batch):
        return torch.randn(()) * out.logits.mean()


class Wide(Hook):
    def loss(self, run, out, batch):
        return out.logits.mean(-1)


@lru_cache
def plain(seed: int) -> tuple:
    return (*SMALL, f"seed={seed}")


def with_hook(hook) -> Replicas:
    members = [trainer(*plain(seed), double=True) for seed in range(2)]
    for member in members:
        member.hooks = type(member.hooks)({"mine": hook()})
    return Replicas(members)


@pytest.mark.parametrize("hook, message", [(Peeking, "run.weights"), (Wide, "not a scalar")])
def test_a_penalty_that_is_not_one_runs_own_is_refused(hook, message):
    run = with_hook(hook)
    with pytest.raises(Unpackable, match=message):
        advance(run, 1)


@pytest.mark.parametrize("hook", [Branching, Drawing])
def test_control_flow_on_data_and_draws_from_the_global_generator_are_errors(hook):
    run = with_hook(hook)
    with pytest.raises(RuntimeError):
        advance(run, 1)


def test_a_hook_that_knows_nothing_of_replicas_is_called_for_each():
    alone = [trainer(*plain(seed), double=True) for seed in range(2)]
    for one in alone:
        one.hooks = type(one.hooks)({"mine": Coupled()})
        advance(one, 5)
    run = with_hook(Coupled)
    advance(run, 5)
    for one, member in zip(alone, run.members, strict=True):
        torch.testing.assert_close(member.weights.data, one.weights.data, rtol=0, atol=1e-12)


def test_what_is_not_made_for_replicas_is_refused():
    members = [trainer(*plain(seed)) for seed in range(2)]
    members[0].sharpness = Loner()
    with pytest.raises(Unpackable, match="Loner"):
        Replicas(members)
    for word in ("train.precision=fp16", "train.compile=true"):
        with pytest.raises(Unpackable, match=word.split("=")[0]):
            Replicas([trainer(*plain(seed), word) for seed in range(2)])
    with pytest.raises(Unpackable, match="differ"):
        Replicas([trainer(*plain(0)), trainer(*plain(1), "dataset.subset=100")])
    with pytest.raises(Unpackable, match="differ"):
        Replicas([trainer(*plain(0)), trainer(*plain(1), "model.hidden=[8]")])
    members = [trainer(*plain(seed)) for seed in range(2)]
    for member in members:
        member.optimizer = torch.optim.RMSprop([member.weights.slices[0]])
    with pytest.raises(Unpackable, match="RMSprop"):
        Replicas(members)


# ---- dropout


def test_dropout_keeps_its_share_and_its_mean():
    run = trainer(*SMALL[:-1], "model=wrn_16_8", "model.widen=1", "model.dropout=0.3")
    layers = [module for module in run.model.modules() if isinstance(module, Dropout)]
    assert len(layers) == 6
    x = torch.ones(200, 500)
    y = layers[0](x)
    assert sorted(set(y.flatten().tolist())) == [0.0, pytest.approx(1 / 0.7)]
    assert (y == 0).double().mean().item() == pytest.approx(0.3, abs=0.01)
    assert torch.equal(layers[0](x), y)  # the same place in training
    assert not torch.equal(layers[1](x), y)  # another layer
    run.masks.step += 1
    assert not torch.equal(layers[0](x), y)
    run.masks.step -= 1
    run.masks.forwards += 1  # the next micro-batch
    assert not torch.equal(layers[0](x), y)
    assert layers[0].eval()(x) is x


def test_dropout_draws_nothing_from_the_global_generator():
    run = trainer(*SMALL[:-1], "model=wrn_16_8", "model.widen=1", "model.dropout=0.3")
    before = torch.get_rng_state()
    advance(run, 1)
    assert torch.equal(torch.get_rng_state(), before)
