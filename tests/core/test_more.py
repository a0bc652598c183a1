"""What travels with samples beside a batch's fields: through parts, replicas and passes; and the text of DESIGN.md."""

import sys

import pytest
import torch
from torch import nn

from runner.core.batch import Batch, Output
from runner.hook import Hook
from runner.model.mlp import Mlp
from tests.conftest import ROOT
from tests.engine.test_replicas import advance, assert_pack_equals_alone, doubled
from tests.test_compose import assert_resumed_equals_whole, updates
from tests.tiny import trainer

B = 6
SMALL = ["model.hidden=[12]", "train.batch_size=8", "train.epochs=8", "device=cpu"]


def a_batch() -> Batch:
    x, y = torch.randn(B, 3), torch.arange(B)
    return Batch(x, y, y + 10, weight=x[:, 0], total=9, epoch=2).put(view=2 * x, who=y % 2 == 0)


def test_what_is_put_goes_where_the_samples_go():
    batch = a_batch()
    for part, rows in ((batch.select(torch.tensor([4, 1])), [4, 1]), (batch.select(batch.more["who"]), [0, 2, 4])):
        assert part.more.keys() == {"view", "who"} and (part.total, part.epoch) == (9, 2)
        assert torch.equal(part.more["view"], 2 * batch.x[rows])
        assert torch.equal(part.more["who"], batch.y[rows] % 2 == 0)
    parts = list(batch.split(4))
    assert [len(part) for part in parts] == [4, 2]
    whole = Batch.joined(parts, torch.cat)
    stacked = Batch.stack([batch, a_batch().each(lambda value: value.flip(0))])
    assert stacked.lead == 1 and stacked.more["view"].shape == (2, B, 3)
    assert torch.equal(stacked.select(slice(2)).more["who"], stacked.more["who"][:, :2])
    for same in (whole, stacked.replica(0)):
        assert same.lead == 0
        for name in ("x", "y", "index", "weight"):
            assert torch.equal(getattr(same, name), getattr(batch, name))
        assert all(torch.equal(same.more[name], batch.more[name]) for name in ("view", "who"))


def test_a_name_is_put_once_and_the_batch_it_was_put_in_stays():
    batch = a_batch()
    with pytest.raises(ValueError, match="has a 'view' already"):
        batch.put(other=batch.x, view=batch.x)
    assert batch.put(other=batch.x).more.keys() == {"view", "who", "other"}
    assert batch.more.keys() == {"view", "who"}
    assert Batch(batch.x, batch.y, batch.index).more == {}
    plain = Batch(batch.x, batch.y, batch.index, weight=batch.weight)
    for pair in ([plain, batch], [batch, plain]):
        with pytest.raises(ValueError, match="'view' is in some of the batches"):
            Batch.stack(pair)


def test_other_outputs_are_detached_and_joined():
    parts = [Output(x, 2 * x, {"heads": 3 * x}) for x in torch.randn(2, 4, 5, requires_grad=True).unbind()]
    whole = Output.cat([part.detach() for part in parts])
    assert torch.equal(whole.more["heads"], torch.cat([part.more["heads"] for part in parts]).detach())
    assert not whole.more["heads"].requires_grad


# ---- the method that DESIGN.md shows


@pytest.fixture
def steady(tmp_path, monkeypatch) -> list[str]:
    """The words that choose it, and its text in a file that is imported."""
    text = (ROOT / "DESIGN.md").read_text().partition("import torch  # steady.py")[2].partition("```")[0]
    assert len([line for line in text.splitlines() if line.strip()]) <= 20
    (tmp_path / "steady.py").write_text(f"import torch\n{text}")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "steady", raising=False)
    return ["+hook.steady._target_=steady.Steady"]


def test_the_method_shown_does_what_it_says(steady):
    """The first visit pulls the logits to zero, and later ones to what they were."""
    plain, run = trainer(*SMALL, double=True), trainer(*SMALL, *steady, double=True)
    batch = next(iter(run.loader.epoch(0)))
    outs = run.outputs(batch.x).logits
    gap = run.gradient(run.hooks.batch(run, batch)) - plain.gradient(batch)
    assert gap.item() == pytest.approx(0.1 * outs.square().mean().item(), rel=1e-12)
    run.note()
    assert torch.equal(run.hooks.named["steady"].memory[batch.index], outs.detach())
    again = run.gradient(run.hooks.batch(run, batch), note=False) - plain.gradient(batch, note=False)
    assert again.item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("words", [["train.accumulate=2"], ["optim=sam"], ["optim=sam", "sharpness.m=2"]], ids=" ".join)
def test_the_method_shown_in_parts_packs_and_resumed(words, steady, tmp_path):
    assert_resumed_equals_whole(["dataset.subset=32", "model.hidden=[12]", *words, *steady], 6, tmp_path)
    own = [*SMALL, *words, *steady]
    assert_pack_equals_alone(doubled, [[*own, "seed=0"], [*own, "seed=1", "+hook.steady.weight=0.3"]], steps=8)


def test_the_method_shown_in_half_precision(steady):
    for precision in ("bf16", "fp16"):
        run = trainer(*SMALL, *steady, f"train.precision={precision}")
        memory = run.hooks.named["steady"].memory
        if scale := run.precision.scale:
            scale.value = 2.0**40
            advance(run, 1)  # overflows, and leaves nothing behind
            assert run.count == 1 and not memory.any()
            scale.value = 2.0**8
        advance(run, 3)
        assert memory.any() and torch.isfinite(run.weights.data).all()


def test_the_method_shown_with_clients_and_quantized(steady):
    clients = ["federated=fedavg", "federated.clients=3", "federated.rounds=2", "dataset.subset=60"]
    for words in (clients, ["quantization=lsq", "model.hidden=[12,12]"]):
        run = trainer(*SMALL, *words, *steady)
        start = run.weights.clone()
        assert sum(1 for _ in updates(run, 2)) == 2
        seen = run.hooks.named["steady"].memory.any(-1).sum()  # the clients share it: each sample has one client
        assert seen == (len(run.dataset.train) if words is clients else 2 * 8)
        assert torch.isfinite(run.weights.data).all() and not torch.equal(run.weights.data, start)


# ---- other outputs


class Heads(Mlp):
    """With a second head beside the first."""

    def __init__(self, shape, classes: int, hidden: list[int]):
        super().__init__(shape, classes, hidden)
        self.second = nn.Linear(hidden[-1], 2)

    def forward(self, x):
        out = super().forward(x)
        return Output(out.logits, out.features, {"second": self.second(out.features)})


class Small(Hook):
    """Half the mean square of the second head, which is also noted."""

    replicas = True

    def observe(self, run, out, batch):
        self.noted = out.more["second"].clone()

    def state_dict(self):
        return {"noted": self.noted} if hasattr(self, "noted") else {}

    def loss(self, run, out, batch):
        return out.more["second"].square().mean() / 2


HEADS = ["model._target_=tests.core.test_more.Heads", "+hook.small._target_=tests.core.test_more.Small"]


def test_other_outputs_reach_penalties_in_parts_and_packs():
    for words in ([], ["train.accumulate=2"], ["optim=sam"]):
        own = [*SMALL, *HEADS, *words]
        assert_pack_equals_alone(doubled, [[*own, "seed=0"], [*own, "seed=1"]], steps=6)
    run = trainer(*SMALL, *HEADS, double=True)
    batch = next(iter(run.loader.epoch(0)))
    run.gradient(batch)
    second = run.model.second(run.outputs(batch.x).features)
    (expected,) = torch.autograd.grad(second.square().mean() / 2, run.model.second.bias)
    torch.testing.assert_close(run.model.second.bias.grad, expected)
