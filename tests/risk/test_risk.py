"""The contract of every risk in conf/risk, its values against tests/reference/risk_<option>.py, and known points."""

import importlib
import importlib.util
import inspect
from itertools import islice

import pytest
import torch
import yaml

from runner.core.batch import Batch
from runner.risk.adaptive_k import AdaptiveK
from runner.risk.dynamic_reweight import DynamicReweight
from runner.risk.mean import Mean
from runner.risk.top_k import TopK
from tests.conftest import ROOT
from tests.loss.made import OPTIONS as LOSSES
from tests.tiny import SMALL, trainer

OPTIONS = sorted(path.stem for path in (ROOT / "conf" / "risk").glob("*.yaml"))
B = 7
WEIGHT = torch.tensor([0.5, 2.0, 1.0, 0.0, 1.5, 1.0, 1.0], dtype=torch.float64)


def make(option, **settings):
    node = yaml.safe_load((ROOT / "conf" / "risk" / f"{option}.yaml").read_text())
    module, name = node.pop("_target_").rsplit(".", 1)
    target = getattr(importlib.import_module(module), name)
    context = {"samples": 20} if "samples" in inspect.signature(target).parameters else {}
    return target(**context, **(node | settings))


def reference(option):
    path = ROOT / "tests" / "reference" / f"risk_{option}.py"
    assert path.exists(), f"conf/risk/{option}.yaml needs an independent formula in {path.relative_to(ROOT)}"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def settings():
    found = []
    for option in OPTIONS:
        path = ROOT / "tests" / "reference" / f"risk_{option}.py"
        for setting in reference(option).SETTINGS if path.exists() else [{}]:
            found.append(
                pytest.param(option, setting, id="-".join([option, *(f"{k}={v}" for k, v in setting.items())]))
            )
    return found


def batch(weight=None):
    return Batch(
        torch.arange(1.0, B + 1)[:, None], torch.arange(B) % 3, torch.tensor([3, 11, 0, 19, 6, 5, 2]), weight=weight
    )


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.rand(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)) * 3


def test_there_are_risks():
    assert {"mean", "top_k"} <= set(OPTIONS)


@pytest.mark.parametrize(("option", "setting"), settings())
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
class TestContract:
    def test_scalar_of_the_losses_dtype(self, option, setting, weight):
        for dtype in (torch.float32, torch.float64):
            value = make(option, **setting)(draw(B, dtype=dtype), batch(None if weight is None else weight.to(dtype)))
            assert value.shape == () and value.dtype == dtype

    def test_values_of_the_formula(self, option, setting, weight):
        losses = draw(B)
        expected = reference(option).reference(
            losses.tolist(), [1.0] * B if weight is None else weight.tolist(), **setting
        )
        assert make(option, **setting)(losses, batch(weight)).item() == pytest.approx(expected, rel=1e-12)

    def test_gradient_is_that_of_finite_differences(self, option, setting, weight):
        risk, losses = make(option, **setting).double(), draw(B).requires_grad_()
        if own := getattr(reference(option), "gradient", None):  # of a risk that is not descended itself
            expected = own(losses.tolist(), [1.0] * B if weight is None else weight.tolist(), **setting)
            (found,) = torch.autograd.grad(risk(losses, batch(weight)), losses)
            assert found.tolist() == pytest.approx(expected, rel=1e-12)
        else:
            assert torch.autograd.gradcheck(lambda losses: risk(losses, batch(weight)), losses)

    def test_finite_at_extreme_losses(self, option, setting, weight):
        for scale in (0.0, 1e-30, 1e4, 1e30):
            losses = (draw(B, dtype=torch.float32) * scale).requires_grad_()
            value = make(option, **setting)(losses, batch(None if weight is None else weight.float()))
            (gradient,) = torch.autograd.grad(value, losses)
            assert torch.isfinite(value) and torch.isfinite(gradient).all()

    def test_forward_changes_no_state(self, option, setting, weight):
        risk, losses = make(option, **setting), draw(B)
        before = {name: tensor.clone() for name, tensor in risk.state_dict().items()}
        assert torch.equal(risk(losses, batch(weight)), risk(losses, batch(weight)))
        assert risk.state_dict().keys() == before.keys()
        assert all(torch.equal(tensor, before[name]) for name, tensor in risk.state_dict().items())

    def test_order_of_the_batch_does_not_matter(self, option, setting, weight):
        risk, losses = make(option, **setting), draw(B)
        turned = risk(losses.roll(2), batch(None if weight is None else weight.roll(2)))
        torch.testing.assert_close(turned, risk(losses, batch(weight)))

    def test_replica_axis_equals_a_loop(self, option, setting, weight):
        risk, losses = make(option, **setting), draw(3, B)
        packed = torch.func.vmap(torch.func.grad_and_value(lambda row: risk(row, batch(weight))))(losses)
        for k in range(3):
            row = losses[k].clone().requires_grad_()
            value = risk(row, batch(weight))
            torch.testing.assert_close(packed[1][k], value.detach())
            torch.testing.assert_close(packed[0][k], torch.autograd.grad(value, row)[0])


def small(weight=None):
    return Batch(torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64), torch.arange(4), weight=weight)


def test_by_hand():
    losses = torch.tensor([1.0, 4.0, 2.0, 8.0])
    weight = torch.tensor([2.0, 0.25, 0.75, 1.0])
    assert Mean()(losses, small()).item() == 3.75  # 15 / 4
    assert Mean()(losses, small(weight)).item() == 3.125  # (2 + 1 + 1.5 + 8) / 4, not over the sum of the weights
    assert TopK(0.5)(losses, small()).item() == 6.0  # k = 2: (8 + 4) / 2
    assert TopK(0.5)(losses, small(weight)).item() == 5.0  # k = 2 of 2, 1, 1.5, 8: (8 + 2) / 2
    assert TopK(0.75)(losses, small()).item() == pytest.approx(14 / 3)  # k = 3: (8 + 4 + 2) / 3
    assert TopK(0.01)(losses, small()).item() == 8.0  # k = 1: the maximum


def test_top_k_of_all_is_the_mean():
    losses = draw(B)
    torch.testing.assert_close(TopK(1.0)(losses, batch(WEIGHT)), Mean()(losses, batch(WEIGHT)))


def test_only_the_largest_get_a_gradient():
    losses = torch.tensor([1.0, 4.0, 2.0, 8.0], requires_grad=True)
    TopK(0.5)(losses, small()).backward()
    assert losses.grad.tolist() == [0.0, 0.5, 0.0, 0.5]


def test_weights_are_per_sample_where_losses_are_per_token():
    losses = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    two = Batch(torch.zeros(2, 1), torch.zeros(2, 2), torch.arange(2), weight=torch.tensor([10.0, 1.0]))
    assert Mean()(losses, two).item() == 9.25  # (10 + 20 + 3 + 4) / 4
    assert TopK(0.5)(losses, two).item() == 15.0  # k = 2: (20 + 10) / 2


# ---- adaptive_k


def adaptive_k(batches, warmup):
    """A transcription of the authors' notebook: (threshold, mean of the kept losses) of each batch of losses."""
    m = v = 0.0
    found = []
    for step, losses in enumerate(batches):
        threshold = float("inf")
        if step >= warmup:
            mean = sum(losses) / len(losses)
            m = 0.9 * m + 0.1 * mean
            v = 0.999 * v + 0.001 * mean * mean
            threshold = m / (v**0.5 + 1e-8)
        kept = [loss for loss in losses if loss <= threshold]
        found.append((threshold, sum(kept) / len(kept) if kept else 0.0))
    return found


def test_adaptive_k_is_the_notebooks_over_many_steps():
    steps = 400
    losses = draw(steps, B) * torch.linspace(3, 0.1, steps, dtype=torch.float64)[:, None]
    risk, kept = AdaptiveK(warmup=0.05).double(), 0
    for step, (row, (threshold, expected)) in enumerate(zip(losses, adaptive_k(losses.tolist(), 20), strict=True)):
        assert risk(row, batch()).item() == pytest.approx(expected, rel=1e-12, abs=1e-15)
        risk.observe(row, batch(), step + 1, steps)
        kept += step >= 20 and (row <= threshold).sum().item()
    assert 0.2 < kept / (B * (steps - 20)) < 0.95  # the threshold decided something


def test_the_threshold_of_constant_losses():
    """The numbers of the docstring, for losses of 0.01 and of 100."""
    for size in (0.01, 100.0):
        found = [threshold for threshold, _ in adaptive_k([[size]] * 20_000, 0)]
        risk = AdaptiveK(warmup=0).double()
        for step in range(500):
            risk.observe(torch.full((1,), size, dtype=torch.float64), batch(), step + 1, 500)
        assert (risk.m / (risk.v.sqrt() + 1e-8)).item() == pytest.approx(found[499], rel=1e-10)
        assert found[0] == pytest.approx(3.16, abs=0.01) and 6.5 < max(found) < 6.6 and found.index(max(found)) == 11
        assert found[499] == pytest.approx(1.6, abs=0.01) and found[-1] == pytest.approx(1, abs=1e-4)


def test_a_batch_of_which_nothing_is_kept_gives_no_gradient():
    losses = torch.full((4,), 9.0, requires_grad=True)  # above the first threshold, 3.16
    value = AdaptiveK(warmup=0)(losses, small())
    assert value.item() == 0
    assert torch.autograd.grad(value, losses)[0].tolist() == [0.0] * 4


def test_state_of_a_risk_follows_the_steps_that_were_made():
    """Not the second pass of SAM, not the micro-batches, not a step that overflowed."""
    words = ["risk=adaptive_k", "risk.warmup=0.25", "optim=sam", "train.accumulate=2"]
    run = trainer(*SMALL, *words, double=True)
    losses = []
    for step, own in enumerate(islice((part for epoch in range(2) for part in run.loader.epoch(epoch)), 8)):
        with torch.no_grad():
            losses.append(run.loss(run.model(own.x), own).tolist())
        assert bool(run.risk.active) == (step >= 0.25 * run.steps)
        run.step(own)
    m = v = 0.0
    for row in losses[-(-run.steps // 4) :]:
        m, v = 0.9 * m + 0.1 * sum(row) / len(row), 0.999 * v + 0.001 * (sum(row) / len(row)) ** 2
    assert run.risk.m.item() == pytest.approx(m, rel=1e-9) and run.risk.v.item() == pytest.approx(v, rel=1e-9)
    assert {"m", "v", "active"} == run.state_dict()["risk"].keys()

    run = trainer(*SMALL, "risk=adaptive_k", "risk.warmup=0", "train.precision=fp16")
    run.precision.scale.value = 2.0**127
    assert run.step(next(run.loader.epoch(0))) is None
    assert run.risk.m.item() == 0
    run.precision.scale.value = 2.0
    assert run.step(next(run.loader.epoch(0))) is not None
    assert run.risk.m.item() > 0


# ---- what has no effect

MICRO = ["train.batch_size=4", "train.accumulate=4"]
SILENT = {  # words of a run, and what it says; its risk is the mean then
    "top_k of all": (["risk=top_k", "risk.fraction=0.99"], "k is all 32 samples"),
    "top_k of one": (["risk=top_k", *MICRO], "a forward pass sees one sample"),
    "top_k of m": (["risk=top_k", "risk.fraction=0.9", "optim=sam", "sharpness.m=2"], "k is all 2 samples"),
    "spectral": (["risk=spectral", "risk.parameter=1"], "weighs all alike"),
    "superquantile": (["risk=spectral", "risk.spectrum=superquantile", "risk.parameter=0"], "weighs all alike"),
    "spectral of one": (["risk=spectral", *MICRO], "a forward pass sees one sample"),
    "dynamic_reweight": (["risk=dynamic_reweight", *MICRO], "a forward pass sees one sample"),
    "cvar": (["risk=cvar", "risk.beta=0"], "this is the mean"),
}
SILENT |= {
    f"{risk} of a batch's loss": ([f"risk={risk}", "dataset=diabetes", "loss=cs_ib"], "one value for a whole batch")
    for risk in ("top_k", "spectral", "dynamic_reweight")
}


@pytest.mark.parametrize(("words", "said"), SILENT.values(), ids=SILENT)
def test_a_risk_that_is_the_mean_says_so(words, said):
    run = trainer(*SMALL, *words)
    assert sum(said in notice for notice in run.notices) == 1
    own = next(run.loader.epoch(0))
    size = run.sharpness.m or -(-len(own) // run.train.accumulate)
    part = next(own.split(size))
    losses = run.loss(run.outputs(part.x), part).detach()
    torch.testing.assert_close(run.risk(losses, part), losses.mean())


@pytest.mark.parametrize("risk", ["mean", "top_k", "spectral", "prospect", "dynamic_reweight", "adaptive_k", "cvar"])
def test_one_that_has_an_effect_is_silent(risk):
    assert not [notice for notice in trainer(*SMALL, f"risk={risk}").notices if notice.startswith("risk")]


def test_the_least_k_is_one():
    (notice,) = trainer(*SMALL, "risk=top_k", "risk.fraction=0.01").notices
    assert notice == "risk.fraction=0.01: of 32 samples of a forward pass k is 1, the least there is"


@pytest.mark.parametrize("option", LOSSES)
def test_which_losses_have_one_value_for_a_batch(option):
    from tests.loss import test_loss as losses

    loss, kind = losses.make(option), losses.kinds(option)[0]
    found = losses.value(loss, losses.logits(option, kind), losses.targets(option, kind))
    assert loss.alike == bool((found == found[0]).all())


# ---- dynamic_reweight


def test_dynamic_reweighting_by_hand():
    losses = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)  # h = -1, 0, 1
    three = Batch(torch.zeros(3, 1), torch.zeros(3), torch.arange(3))
    e = 2.718281828459045
    for strategy, g in (("linupper", (1, e, e)), ("quadratic", (1, e, 1)), ("extremes", (e, 1, e))):
        risk = DynamicReweight(strategy, 1.0, 0.0)
        (found,) = torch.autograd.grad(risk(losses, three), losses)
        assert found.tolist() == pytest.approx([x / sum(g) for x in g])
        assert risk(torch.full((3,), 2.5), three).item() == pytest.approx(2.5)  # all alike: the mean
        assert DynamicReweight(strategy, 1e6, 0)(losses, three).item() == pytest.approx(2.0)


def test_its_weights_are_equal_until_the_end_of_the_warmup():
    risk, losses = DynamicReweight(warmup=0.25), draw(B)
    for step in range(1, 7):
        early = risk(losses, batch()).item() == pytest.approx(losses.mean().item(), rel=1e-6)
        assert early == (step <= 5)  # 5 of 20 steps
        risk.observe(losses, batch(), step, 20)
