"""What optimizers see that look about, of the step's own function: the loss elsewhere, products with the Hessian."""

import copy
import importlib
import sys

import pytest
import torch

from runner.core.mistake import ConfigError
from runner.core.precision import Overflow
from runner.engine.closure import Asked
from runner.engine.replicas import Replicas
from tests.conftest import ROOT
from tests.tiny import trainer

SMALL = ["dataset.subset=60", "train.batch_size=20", "model.hidden=[6]"]
WRN = [
    "dataset.subset=40",
    "train.batch_size=10",
    "model=wrn_16_8",
    "model.depth=10",
    "model.widen=1",
    "model.dropout=0.3",
]
FEW = ["~optim.momentum", "~optim.weight_decay", "~optim.dampening", "~optim.nesterov"]


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """The files that DESIGN.md shows, to be imported."""
    text = (ROOT / "DESIGN.md").read_text()
    for name in ("cauchy", "two_points"):
        own = text.partition(f"import torch  # {name}.py")[2].partition("```")[0]
        assert 0 < len([line for line in own.splitlines() if line.strip()]) <= 20
        (tmp_path / f"{name}.py").write_text(f"import torch{own}")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield ["optim._target_=cauchy.Cauchy", *FEW]
    for name in ("cauchy", "two_points"):
        sys.modules.pop(name, None)


def asked(*words: str, **more):
    run = trainer(*words, **more)
    return run, Asked(run, next(iter(run.loader.epoch(0))))


@pytest.mark.parametrize(
    "words", [SMALL, WRN, [*WRN, "train.accumulate=3"], [*SMALL, "loss=elr", "risk=top_k"]], ids=str
)
def test_the_value_is_the_loss_of_the_call_bit_for_bit(words):
    run, closure = asked(*words)
    run.optimizer.looks = True  # so that memories are noted after the step
    before = closure.value()
    loss = closure()
    gradient, buffers = run.weights.grad.clone(), [buffer.clone() for buffer in run.model.buffers()]
    assert torch.equal(before, loss) and torch.equal(closure.value(), loss)
    run.weights.add_(torch.ones_like(run.weights.data), 0.01)
    assert not torch.equal(closure.value(), loss)
    assert torch.equal(run.weights.grad, gradient)
    assert all(torch.equal(*pair) for pair in zip(run.model.buffers(), buffers, strict=True))


@pytest.mark.parametrize("words", [SMALL, WRN, [*SMALL, "train.accumulate=3", "groups=no_decay"]], ids=str)
def test_the_product_is_the_difference_of_gradients(words):
    run, closure = asked(*words, "loss=poly", "hook=spectral_decoupling", double=True)
    run.optimizer.looks = True
    v = run.weights.flatten(view for _, view in run.weights.views(torch.randn_like(run.weights.data)))
    v /= v.norm()
    product = torch.cat(closure.hvp(run.weights.cut(v)))
    ends = []
    for sign in (1, -1):
        with run.weights.restored():
            run.weights.add_(v, sign * 1e-5)
            closure()
            ends.append(run.weights.grad.clone())
    expected = (ends[0] - ends[1]) / 2e-5
    assert expected.norm() > 0.01 and (product - expected).norm() < 1e-4 * expected.norm()


def test_the_hessian_of_a_linear_model_is_the_covariance():
    """Squared error of one output: H = mean of 2 x x^T, b apart."""
    run, closure = asked("dataset=diabetes", "loss=squared", "model.hidden=[]", "dataset.subset=20", double=True)
    x = closure.batch.x.flatten(1)
    v = torch.zeros_like(run.weights.data)
    w = run.weights.places[0].view(v)
    w.normal_()
    found = run.weights.places[0].view(torch.cat(closure.hvp([v])))
    torch.testing.assert_close(found, 2 * w @ (x.T @ x) / len(x))


def test_the_design_s_optimizer_trains_packs_resumes_and_goes_to_clients(shown):
    words = [*SMALL, *shown, "optim.lr=0.5", "groups._target_=cauchy.Slow"]
    run = trainer(*words)
    assert run.optimizer.looks and run.several and len(run.weights.slices) == 2
    batches = list(run.loader.epoch(0))
    losses = [run.step(batch).item() for _ in range(5) for batch in batches]
    assert losses[-1] < losses[0] - 0.3
    run, again = trainer(*words), trainer(*words)
    run.step(batches[0])
    again.load_state_dict(copy.deepcopy(run.state_dict()))
    run.step(batches[1]), again.step(batches[1])
    assert torch.equal(run.weights.data, again.weights.data)
    cells = [[*words, "seed=0"], [*words, "seed=1", "optim.lr=0.1"]]
    alone, members = ([trainer(*cell, double=True) for cell in cells] for _ in range(2))
    for one in alone:
        for batch in one.loader.epoch(0):
            one.step(batch)
    pack = Replicas(members)
    for batch in pack.loader.epoch(0):
        pack.step(batch)
    for row, one in zip(pack.weights.data, alone, strict=True):
        torch.testing.assert_close(row, one.weights.data, rtol=1e-9, atol=1e-11)


def test_the_design_s_gradient_is_the_slope_along_its_direction(shown):
    words = ["dataset.subset=60", "train.batch_size=20", "model.hidden=[6]"]
    run = trainer(*words, "gradient._target_=two_points.TwoPoints", double=True)
    exact = trainer(*words, double=True)
    batch = next(iter(run.loader.epoch(0)))
    run.gradient(batch), exact.gradient(batch)
    g = run.weights.grad
    slope = g.abs().max()
    v = g / slope  # of signs, but for which of the two
    assert set(v.unique().tolist()) == {-1.0, 0.0, 1.0}
    assert (exact.weights.grad @ v).item() == pytest.approx(slope.item(), rel=1e-3)


def test_lbfgs_moves_statistics_once_a_step_and_descends():
    words = ["dataset.subset=40", "train.batch_size=36", "model=resnet20", "model.depth=8", *FEW]
    words += ["optim._target_=torch.optim.LBFGS", "optim.lr=0.1", "train.channels_last=false"]
    run = trainer(*words, "dataset.val=0", "+optim.max_iter=5")
    batch = next(iter(run.loader.epoch(0)))
    losses = [run.step(batch).item() for _ in range(3)]
    assert losses[2] < losses[1] < losses[0]
    assert {int(b) for name, b in run.model.named_buffers() if name.endswith("num_batches_tracked")} == {3}


def test_an_overflow_of_the_product_skips_the_step():
    run, closure = asked(*SMALL, "train.precision=fp16")
    run.precision.scale.value = 2.0**127
    with pytest.raises(Overflow):
        closure.hvp([torch.full_like(own, 1e30) for own in run.weights.slices])


@pytest.mark.parametrize(
    "words, why",
    [
        (["balance=upgrad", "balance.of=terms", "hook=spectral_decoupling"], "balance=upgrad has another gradient"),
        (["gradient=forward"], "gradient=forward has another gradient"),
        (["train.compile=true"], "differentiates twice, which a compiled model cannot"),
    ],
    ids=str,
)
def test_what_cannot_be_looked_at_is_one_line(shown, words, why):
    with pytest.raises(ConfigError, match=why):
        trainer(*SMALL, *shown, *words)


def test_who_looks_must_say_so(shown, monkeypatch):
    import cauchy

    monkeypatch.setattr(cauchy.Cauchy, "looks", False)
    with pytest.raises(ConfigError, match="asks for closure.hvp: it must say `looks = True`"):
        trainer(*SMALL, *shown)


@pytest.mark.parametrize(
    "words", [["sharpness=sam"], ["quantization=lsq", "model.hidden=[6,6]"], ["train.precision=bf16"]], ids=str
)
def test_it_looks_through_whatever_else_there_is(shown, words):
    run = trainer(*SMALL, *shown, *words)
    for batch in run.loader.epoch(0):
        run.step(batch)
    assert torch.isfinite(run.weights.data).all()
