"""Players in turn: whose tensors are whose, what stays still, and that the rest goes on as ever."""

import copy
import importlib
import sys

import pytest
import torch
from torch import nn

from runner.core.mistake import ConfigError
from runner.engine.replicas import Replicas
from runner.loss import Loss
from tests.conftest import ROOT
from tests.engine.test_replicas import assert_pack_equals_alone
from tests.test_compose import assert_resumed_equals_whole
from tests.tiny import trainer

SMALL = ["dataset.subset=60", "train.batch_size=10", "dataset.val=0", "model.hidden=[8]"]


@pytest.fixture
def duel(tmp_path, monkeypatch) -> list[str]:
    text = (ROOT / "DESIGN.md").read_text().partition("from torch import nn  # duel.py")[2].partition("```")[0]
    assert 0 < len([line for line in text.splitlines() if line.strip()]) <= 20
    (tmp_path / "duel.py").write_text(f"from torch import nn{text}")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "duel", raising=False)
    importlib.invalidate_caches()
    return ["loss=stablemax", "loss._target_=duel.Duel"]


def parts(run) -> dict[str, list]:
    """Of every player its weights, and all that the optimizer remembers of them."""
    found: dict[str, list] = {}
    keys = dict.fromkeys(run.weights.keys)
    params = run.weights.slices if getattr(run.optimizer, "flat", False) else None
    for number, key in enumerate(keys):
        group = run.optimizer.param_groups[number]
        assert params is None or group["params"][0] is params[number]
        for p in group["params"]:
            state = copy.deepcopy(run.optimizer.state.get(p, {}))
            found.setdefault(key.player, []).append((p.detach().clone(), state))
    return found


def same(a, b) -> bool:
    leaves = [torch.utils._pytree.tree_leaves(part) for part in (a, b)]
    return len(leaves[0]) == len(leaves[1]) and all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(*leaves, strict=True)
    )


NADAM = ["optim._target_=torch.optim.NAdam", *(f"~optim.{key}" for key in ("momentum", "dampening", "nesterov"))]


@pytest.mark.parametrize(
    "words",
    [
        ["optim.weight_decay=0.1", "optim.momentum=0.9"],
        ["optim=adamw", "groups=no_decay", "sharpness=sam", "train.accumulate=2"],
        ["optim=muon", "model.hidden=[8,8]", "hook=clip", "sharpness=asam", "sharpness.m=5"],
        [*NADAM, "optim.weight_decay=0.1"],
        ["optim=adam", "train.precision=fp16"],
    ],
    ids=str,
)
def test_who_does_not_step_stays_bit_for_bit_with_what_is_remembered(words, duel):
    run = trainer(*SMALL, *duel, *words)
    if run.precision.scale:
        run.precision.scale.value = 4.0
    expected = ["judge", "judge", "model"] * 2
    for batch, turn in zip(run.loader.epoch(0), expected, strict=True):
        before = parts(run)
        run.step(batch)
        after = parts(run)
        assert run.loss.turn == turn
        other = {"judge": "model", "model": "judge"}[turn]
        assert same(before[other], after[other])
        assert not any(torch.equal(x, y) for (x, _), (y, _) in zip(before[turn], after[turn], strict=True))
        padding = run.weights.flatten([torch.ones_like(p) for p in run.weights.parameters]) == 0
        assert not run.weights.data[padding].any()


def test_the_gradient_is_that_of_the_player_alone(duel):
    run = trainer(*SMALL, *duel, double=True)
    batches = iter(run.loader.epoch(0))
    for turn in ("judge", "judge", "model"):
        batch = next(batches)
        run.hooks.before(run)
        run.gradient(batch)
        loss, _ = run.objective(batch)
        exact = torch.autograd.grad(loss, run.weights.parameters, allow_unused=True)
        whose = [key.player for key in run.weights.keys]
        exact = run.weights.flatten([g if own == turn else None for g, own in zip(exact, whose, strict=True)])
        torch.testing.assert_close(run.weights.grad, exact)
        run.count += 1


def test_an_optimizer_of_each_alone_does_the_same(duel):
    """Two of torch's Adam, one for each, over the same turns."""
    run = trainer(*SMALL, *duel, "optim=adam", "schedule=constant", double=True)
    model, loss = copy.deepcopy((run.model, run.loss))
    hands = {"judge": loss.judge, "model": model}
    adams = {name: torch.optim.Adam(part.parameters(), lr=1e-3) for name, part in hands.items()}
    for batch, turn in zip(run.loader.epoch(0), ["judge", "judge", "model"] * 2, strict=True):
        run.step(batch)
        loss.turn = turn
        for made in adams.values():
            made.zero_grad()
        loss(loss.head(model(batch.x)), batch).mean().backward()
        adams[turn].step()
    for a, b in zip((*run.model.parameters(), *run.loss.parameters()), (*model.parameters(), *loss.parameters())):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("words", [["optim=adamw", "hook=ema"], ["sharpness=sam", "train.precision=bf16"]], ids=str)
def test_it_goes_on_in_the_middle_of_a_cycle(words, duel, tmp_path):
    own = ["dataset.subset=32", "model.hidden=[8]", *duel, *words]
    assert_resumed_equals_whole(own, 5, tmp_path)


def test_packs_turn_together(duel):
    def make(cells):
        return [trainer(*SMALL, *duel, "optim=adamw", *cell, double=True) for cell in cells]

    assert_pack_equals_alone(make, [["seed=0"], ["seed=1", "optim.lr=0.01"]], steps=7, atol=1e-9)
    members = make([["seed=0"], ["seed=1"]])
    members[0].loss.turn = "judge"  # as a trial leaves one that has stepped alone
    pack = Replicas(members)
    model, judge = pack.weights.cut(pack.weights.data)
    before = model.clone(), judge.clone()
    pack.step(next(iter(pack.loader.epoch(0))))
    assert torch.equal(model, before[0]) and not torch.equal(judge, before[1])


class Broken(Loss):
    def __init__(self, features: int, what: str = "nothing"):
        super().__init__()
        self.one, self.other = nn.Linear(features, 1), nn.Linear(features, 1)
        self.turns = {
            "missing": {"two": 1, "model": 1},
            "left": {"one": 1, "model": 1},
            "shared": {"one": 1, "other": 1, "model": 1},
            "number": {"one": 0, "other": 1, "model": 1},
            "nothing": {"one": 1, "other": 1, "model": 1},
        }[what]
        if what == "shared":
            self.other.weight = self.one.weight
        if what == "nothing":
            self.other.requires_grad_(False)

    def forward(self, out, batch):
        return self.one(out.features).squeeze(-1)


@pytest.mark.parametrize(
    "what, why",
    [
        ("missing", "the player 'two' trains nothing: it is the model or a part of the loss"),
        ("left", "other.weight is trained and belongs to none of the players one, model"),
        ("shared", "the player 'other' has tensors that are another player's too"),
        ("number", "turns must be numbers of steps"),
        ("nothing", "the player 'other' trains nothing"),
    ],
)
def test_players_that_make_no_sense_are_one_line(what, why):
    own = ["loss=stablemax", "loss._target_=tests.engine.test_players.Broken", f"+loss.what={what}"]
    with pytest.raises(ConfigError, match=why):
        trainer(*SMALL, *own)


@pytest.mark.parametrize(
    "words, why",
    [
        (["federated=fedavg", "federated.clients=2", "federated.minimum=2"], "set federated=none"),
        (["gradient=forward"], "set gradient=backprop"),
        (["balance=upgrad", "balance.of=terms", "hook=spectral_decoupling"], "set balance=none"),
        (["risk=cvar"], "alpha is trained and belongs to none of the players judge, model"),
        (["optim._target_=scripts.bench.optim.Looking", *NADAM[1:], "~optim.weight_decay"], "has players"),
    ],
    ids=str,
)
def test_what_does_not_go_with_turns_is_one_line(words, why, duel):
    with pytest.raises(ConfigError, match=why):
        trainer(*SMALL, *duel, *words)


def test_it_is_said(duel):
    assert any("steps are turns: judge 2, model 1" in line for line in trainer(*SMALL, *duel).notices)
