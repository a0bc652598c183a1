"""A step with several objectives: against rows made by hand, through all that a step goes through, and refusals."""

import sys

import pytest
import torch
from torch.nn import functional as F

from runner.balance import Balance
from runner.core.mistake import ConfigError
from runner.engine.closure import Closure
from runner.engine.diagnose import NonFinite
from runner.engine.replicas import Broken, Replicas, Unpackable
from runner.hook import Hook
from tests.balance.made import OF, SMALL, words
from tests.balance.test_methods import by_the_paper
from tests.conftest import ROOT
from tests.engine.test_replicas import advance, assert_pack_equals_alone
from tests.federated.made import federation, rounds
from tests.federated.test_side_by_side import both_ways
from tests.test_compose import assert_resumed_equals_whole
from tests.tiny import trainer

EACH = pytest.mark.parametrize("of", OF)


def objectives(run, of: str, batch) -> list:
    """By their definitions, from the model and torch alone."""
    logits = run.model(batch.x).logits
    if of == "tasks":
        return [F.cross_entropy(logits[:, t], batch.y[:, t]) for t in range(2)]
    if of == "domains":
        own = [batch.domain == domain for domain in (2, 5, 9)]
        return [F.cross_entropy(logits[one], batch.y[one]) for one in own if one.any()]
    return [F.cross_entropy(logits, batch.y), 0.5 * (run.model.head.weight - 1).square().mean()]


def rows_of(run, of: str, batch) -> torch.Tensor:
    return torch.stack(
        [
            run.weights.flatten(torch.autograd.grad(one, run.weights.parameters, retain_graph=True, allow_unused=True))
            for one in objectives(run, of, batch)
        ]
    )


def head_of(run) -> torch.Tensor:
    """(P,) bool: weights of the heads."""
    marks = [torch.full_like(p, float(n.startswith("head"))) for n, p in run.model.named_parameters()]
    return run.weights.flatten(marks) > 0


@EACH
def test_the_gradient_is_that_of_rows_made_by_hand(of):
    """PCGrad's, which with two rows needs no order; of three domains with those orders that the seed and step have."""
    from runner.core import keyed

    run, seen = trainer(*SMALL, *words(of, "pcgrad"), double=True), 0
    for batch in run.loader.epoch(0):
        run.masks.step = run.count
        rows = rows_of(run, of, batch)
        draw = keyed.generator(0, "balance", run.count)
        orders = [draw.permutation(len(rows)) for _ in range(len(rows))]
        common, expected = rows.numpy().copy(), rows.mean(0)
        if of == "tasks":
            own = head_of(run)
            assert own.any() and (rows[0][own] * rows[1][own] == 0).all() and rows.mean(0)[own].any()
            common[:, own.numpy()] = 0
        made = torch.from_numpy(by_the_paper(common, orders))
        expected = torch.where(own, rows.mean(0), made) if of == "tasks" else made
        loss = run.gradient(batch)
        assert loss.item() == pytest.approx(
            sum(one.item() for one in objectives(run, of, batch)) / len(rows), rel=1e-12
        )
        assert torch.allclose(run.weights.grad, expected, atol=1e-12)
        seen += not torch.allclose(expected, rows.mean(0), atol=1e-6)
        run.step(batch)
    assert seen or of == "domains"  # they were in conflict


@EACH
def test_a_domain_or_term_has_its_own_risk_and_the_mean_of_rows_is_the_plain_gradient(of, monkeypatch):
    """With equal weights 1 / T the gradient is that of the recorded loss."""
    monkeypatch.setattr("runner.balance.pcgrad.PCGrad.weigh", lambda self, gram, *_: gram[..., 0] * 0 + 1 / gram.shape[-1])  # fmt: skip  # noqa: E501
    run = trainer(*SMALL, *words(of, "pcgrad"), double=True)
    batch = next(iter(run.loader.epoch(0)))
    loss = sum(objectives(run, of, batch)) / len(objectives(run, of, batch))
    expected = run.weights.flatten(torch.autograd.grad(loss, run.weights.parameters))
    assert run.gradient(batch).item() == pytest.approx(loss.item(), rel=1e-12)
    assert torch.allclose(run.weights.grad, expected, atol=1e-13)
    if of == "tasks":
        plain = trainer(*SMALL, *OF[of], double=True)
        assert plain.gradient(batch).item() == pytest.approx(loss.item(), rel=1e-12)
        assert torch.allclose(plain.weights.grad, expected, atol=1e-13)


def test_a_batch_without_a_domain_goes_by_the_others():
    run = trainer(*SMALL, *words("domains", "mgda"), double=True)
    found = {len(batch.domain.unique()) for batch in run.loader.epoch(0)}
    assert found == {2, 3} or found == {2}
    batch = next(batch for batch in run.loader.epoch(0) if not (batch.domain == 9).any())
    loss = run.gradient(batch)
    assert loss.item() == pytest.approx(sum(one.item() for one in objectives(run, "domains", batch)) / 2, rel=1e-12)
    assert run.weights.grad.norm() > 1e-3  # a row of zeros would be the shortest
    one = run.closure(run, batch.select(batch.domain == 2), alone=True)
    one()
    rows = rows_of(run, "domains", batch.select(batch.domain == 2))
    assert len(rows) == 1 and torch.allclose(run.weights.grad, rows[0], atol=1e-13)


@EACH
@pytest.mark.parametrize("option", ["upgrad", "pcgrad", "aligned_mtl"])
@pytest.mark.parametrize("more", [[], ["optim=sam"], ["optim=sam", "sharpness.m=8"]], ids=" ".join)
def test_accumulating_changes_nothing(of, option, more):
    ends = []
    for parts in (1, 2, 3):
        run = trainer(*SMALL, *words(of, option), *more, f"train.accumulate={parts}", double=True)
        advance(run, 10)
        ends.append(run.weights.clone())
    for end in ends[1:]:
        assert torch.allclose(ends[0], end, rtol=0, atol=1e-11)


@EACH
def test_sam_goes_along_the_balanced_gradient_and_balances_again(of):
    run = trainer(*SMALL, *words(of), "optim=sam", double=True)
    plain = trainer(*SMALL, *words(of), double=True)
    batch = next(iter(run.loader.epoch(0)))
    plain.gradient(batch)
    way = plain.weights.grad / plain.weights.grad.norm() * run.sharpness.rho
    plain.weights.add_(way)
    plain.gradient(batch)
    run.gradient(batch)
    assert torch.allclose(run.weights.grad, plain.weights.grad, atol=1e-13)


@EACH
@pytest.mark.parametrize("option", ["upgrad", "pcgrad", "aligned_mtl", "mgda", "config"])
def test_packs_equal_runs_alone(of, option):
    own = [*SMALL, *words(of, option), "dataset.damage_seed=0"]
    cells = [[*own, "seed=0"], [*own, "seed=1", "optim.lr=0.02"], [*own, "seed=2", "optim=sam", "optim.lr=0.03"][:-2]]
    cells[2] += ["optim.lr=0.03"]
    if of == "terms":
        cells[1] += ["hook.pull.weight=0.3"]

    def make(wanted):
        return [trainer(*cell, double=True) for cell in wanted]

    assert_pack_equals_alone(make, cells, steps=8, atol=1e-9)


def test_a_pack_with_sam_and_parts():
    own = [*SMALL, *words("domains"), "optim=sam", "train.accumulate=2", "sharpness.m=8"]

    def make(wanted):
        return [trainer(*cell, double=True) for cell in wanted]

    assert_pack_equals_alone(make, [[*own, "seed=0"], [*own, "seed=1"]], steps=6, atol=1e-9)


@EACH
@pytest.mark.parametrize("option", ["upgrad", "pcgrad"])
@pytest.mark.parametrize("stop_after", [4, 6])
def test_resumed_within_an_epoch(of, option, stop_after, tmp_path):
    own = ["dataset.subset=32", "model.hidden=[12]", *words(of, option), "optim=sam", "train.accumulate=2"]
    assert_resumed_equals_whole(own, stop_after, tmp_path)


@EACH
def test_half_precision_and_an_overflow(of):
    for precision in ("bf16", "fp16"):
        run = trainer(*SMALL, *words(of), f"train.precision={precision}")
        if scale := run.precision.scale:
            scale.value, before = 2.0**60, run.weights.clone()
            advance(run, 1)
            assert run.count == 1 and scale.skipped == 1 and torch.equal(before, run.weights.data)
            scale.value = 2.0**8
            plain = trainer(*SMALL, *words(of))
            batch = next(iter(run.loader.epoch(0)))
            run.gradient(batch), plain.gradient(batch)
            off = run.weights.grad - plain.weights.grad
            assert off.norm() < 0.05 * plain.weights.grad.norm()  # the rows are unscaled
        advance(run, 3)
        assert torch.isfinite(run.weights.data).all()


@EACH
@pytest.mark.parametrize("quantization", ["dorefa", "lsq"])
def test_quantized(of, quantization):
    run = trainer(*SMALL, *words(of), f"quantization={quantization}", "model.hidden=[12,12]")
    before = run.weights.clone()
    advance(run, 3)
    assert torch.isfinite(run.weights.data).all() and not torch.equal(before, run.weights.data)
    assert any("head of the last task alone" in notice for notice in run.notices) == (of == "tasks")


@EACH
@pytest.mark.parametrize("option", ["upgrad", "pcgrad"])
def test_inside_a_clients_step(of, option):
    """Side by side as one after another, with batches that are not all full; one client of all is the plain run."""
    own = ["device=cpu", "dataset.subset=240", "model.hidden=[12]", "schedule=constant", *words(of, option)]
    both_ways([*own, "federated=fedavg", "federated.clients=5", "train.batch_size=16", "federated.rounds=2"])
    own += ["optim.momentum=0"]  # which a client begins anew
    plain = trainer(*own, "train.epochs=2", double=True)
    run, algorithm = federation(*own, "federated=fedavg", "federated.clients=1", "federated.rounds=2")
    plain.weights.copy_(run.weights.data)
    advance(plain, 2 * plain.steps_per_epoch)
    rounds(run, algorithm)
    assert torch.allclose(run.weights.data, plain.weights.data, rtol=0, atol=1e-10)


def test_nothing_is_there_where_nothing_is_balanced():
    run = trainer(*SMALL)
    assert run.closure is Closure and run.balance is None


@pytest.mark.parametrize("option", ["upgrad", "pcgrad", "aligned_mtl", "mgda", "config"])
def test_a_run_that_diverges_does_so_alone(option):
    own = [*SMALL, *words("terms", option)]
    with pytest.raises(NonFinite, match="loss"):
        advance(trainer(*own, "optim.lr=1e30"), 12)
    pack = Replicas([trainer(*own, "seed=0"), trainer(*own, "seed=1", "optim.lr=1e30")])
    with pytest.raises(Broken) as broken:
        advance(pack, 12)
    assert list(broken.value.args[0]) == [1] and pack.weights.data[0].isfinite().all()


# ---- the method that DESIGN.md shows


@pytest.fixture
def level(tmp_path, monkeypatch) -> str:
    text = (ROOT / "DESIGN.md").read_text().partition("import Balance  # level.py")[2].partition("```")[0]
    assert 0 < len([line for line in text.splitlines() if line.strip()]) <= 20
    (tmp_path / "level.py").write_text(f"from runner.balance import Balance{text}")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "level", raising=False)
    return "balance._target_=level.Level"


@EACH
def test_the_balance_shown_does_what_it_says(of, level):
    run = trainer(*SMALL, *OF[of], level, f"+balance.of={of}", double=True)
    batch = next(iter(run.loader.epoch(0)))
    rows = rows_of(run, of, batch)
    own = head_of(run) if of == "tasks" else torch.zeros_like(rows[0], dtype=torch.bool)
    common = rows.masked_fill(own, 0.0)
    units = common / common.norm(dim=1, keepdim=True)
    run.gradient(batch)
    expected = torch.where(own, rows.mean(0), units.mean(0) * common.norm(dim=1).mean())
    assert torch.allclose(run.weights.grad, expected, atol=1e-10)


def test_the_balance_shown_in_packs_and_resumed(level, tmp_path):
    own = [*OF["terms"], level, "optim=sam", "train.accumulate=2"]
    assert_resumed_equals_whole(["dataset.subset=32", "model.hidden=[12]", *own], 6, tmp_path)

    def make(wanted):
        return [trainer(*cell, double=True) for cell in wanted]

    assert_pack_equals_alone(make, [[*SMALL, *own, "seed=0"], [*SMALL, *own, "seed=1"]], steps=6, atol=1e-9)


class Remembering(Balance, Hook):
    """The mean of the rows with a momentum of its own."""

    def __init__(self):
        self.of = "terms"

    def start(self, run):
        self.mean = torch.zeros_like(run.weights.data)
        self.now = None

    def combine(self, rows, gram, values, draws):
        self.now = 0.9 * self.mean + rows.mean(1)[0]
        return self.now.unsqueeze(0)

    def step(self, run):
        self.mean.copy_(self.now)

    def state_dict(self):
        return {"mean": self.mean}

    def load_state_dict(self, state):
        self.mean.copy_(state["mean"])


REMEMBERING = [*OF["terms"], "balance._target_=tests.balance.test_balance.Remembering"]


def test_one_that_remembers_is_a_hook_and_goes_on(tmp_path):
    still = ["optim.weight_decay=0", "schedule=constant"]
    run = trainer(*SMALL, *REMEMBERING, *still, "optim.momentum=0", double=True)
    plain = trainer(*SMALL, *OF["terms"], *still, "optim.momentum=0.9", "optim.lr=0.025", double=True)
    advance(run, 6), advance(plain, 6)  # its loss is twice the mean of the two
    assert torch.allclose(run.weights.data, plain.weights.data, rtol=0, atol=1e-12)
    assert_resumed_equals_whole(["dataset.subset=32", "model.hidden=[12]", *REMEMBERING], 6, tmp_path)
    with pytest.raises(Unpackable, match="Remembering remembers"):
        monkeyed = [trainer(*SMALL, *REMEMBERING, f"seed={k}") for k in range(2)]
        for one in monkeyed:
            one.balance.replicas = True
        Replicas(monkeyed)


def test_what_gives_something_else_is_refused_in_a_line(monkeypatch):
    monkeypatch.setattr("runner.balance.upgrad.UPGrad.combine", lambda self, rows, *_: rows[0, 0])
    run = trainer(*SMALL, *words("terms"))
    with pytest.raises(ConfigError, match=r"UPGrad must give a gradient of \(1, .*for 2 objectives.*, got"):
        advance(run, 1)


# ---- refusals


@pytest.mark.parametrize(
    "more, message",
    [
        (["balance=upgrad"], "balance.of=tasks there is one: dataset=digits has one target a sample: choose"),
        (["balance=upgrad", "balance.of=domains"], "dataset=digits has no domains"),
        (["balance=upgrad", "balance.of=terms"], "no hook of this run has a penalty"),
        ([*words("tasks"), "risk=cvar"], "risk=cvar keeps one state for all: choose another, or balance.of=terms"),
        ([*words("domains"), "risk=top_k"], "risk=top_k cannot leave out the others: those that can are risk=mean"),
        ([*OF["tasks"], "loss=poly"], "loss=poly is defined for classes, dataset=multi_mnist has tasks"),
        (
            [*OF["tasks"], "model=wrn_16_8"],
            "model=wrn_16_8 one head; those with one for each are model=lenet, lenet_300_100, mlp",
        ),
        ([*OF["tasks"], "hook=saf"], "hook=saf remembers one row of logits a sample"),
        ([*OF["tasks"], "hook=mesa"], "hook=mesa remembers one row of logits a sample"),
        ([*OF["tasks"], "dataset.bag_size=2"], "bag_size is not defined for several tasks"),
    ],
)
def test_refused_in_a_line(more, message):
    own = [word for word in SMALL if "hidden" not in word or not any("wrn" in one for one in more)]
    with pytest.raises(ConfigError, match=message) as refused:
        trainer(*own, *more)
    assert "\n" not in str(refused.value)


def test_a_gradient_that_is_to_be_differentiated_is_refused():
    run = trainer(*SMALL, *words("terms"))
    with pytest.raises(ConfigError, match="create_graph.*set balance=none"):
        run.closure(run, next(iter(run.loader.epoch(0))), alone=False)(create_graph=True)


def test_what_does_not_say_that_it_works_on_replicas_is_not_packed(monkeypatch):
    monkeypatch.setattr("runner.balance.upgrad.UPGrad.replicas", False)
    with pytest.raises(Unpackable, match="UPGrad does not say that it works on replicas"):
        Replicas([trainer(*SMALL, *words("terms"), f"seed={k}") for k in range(2)])
