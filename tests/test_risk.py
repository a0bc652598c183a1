"""The contract of every risk in conf/risk, its values against tests/reference/risk_<option>.py, and known points."""

import importlib
import importlib.util
from pathlib import Path

import pytest
import torch
import yaml

from runner.batch import Batch
from runner.risk.mean import Mean
from runner.risk.top_k import TopK

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = sorted(path.stem for path in (ROOT / "conf" / "risk").glob("*.yaml"))
B = 7
WEIGHT = torch.tensor([0.5, 2.0, 1.0, 0.0, 1.5, 1.0, 1.0], dtype=torch.float64)


def make(option, **settings):
    node = yaml.safe_load((ROOT / "conf" / "risk" / f"{option}.yaml").read_text())
    module, name = node.pop("_target_").rsplit(".", 1)
    return getattr(importlib.import_module(module), name)(**(node | settings))


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
    return Batch(torch.zeros(B, 1), torch.zeros(B, dtype=torch.int64), torch.arange(B), weight=weight)


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
        risk = make(option, **setting).double()
        assert torch.autograd.gradcheck(lambda losses: risk(losses, batch(weight)), draw(B).requires_grad_())

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
