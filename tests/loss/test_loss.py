"""The contract of every loss in conf/loss, its values against tests/reference/loss_<option>.py, and known points.

A reference module has

    SETTINGS                        the constructor's settings to try; {} are the defaults of the YAML
    reference(logits, y, **setting) the values (B,) in numpy, from the definition
    TARGETS                         what y may be, of "ids" (B,), "soft" (B, C), "multihot" (B, C), "real" (B,) with
                                    logits (B, 1), and "reals" (B, 2) with logits (B, 2). Without it: ids and soft
    OUTPUTS                         how many outputs a regression target has, where it is not one
    CLASSES                         where the loss is defined for this number of classes only
    COUPLED                         True where the value of a sample depends on the rest of the batch
    observed(state, logits, y, index, **setting)
                                    where the loss has memories: they after `observe`, a dict of arrays; it may ask
                                    for `features` too

and `reference` may ask by name for `state` (the loss's state_dict before the pass, as a dict of arrays), `index` (B,),
`features` (B, D), the inputs `x` (B, D), `classes`, `samples`, `class_counts`, `bag`, and `held`: the logits, (B, C),
at which what the loss detaches is to be evaluated. They are those of the pass, but for the test of the gradient, which
moves `logits` alone. It is written from the paper's definition or another implementation, never from the code that it
checks, and the batches of this file vary in all of it: what does not vary cannot tell two formulas apart.
"""

import importlib
import importlib.util
import inspect

import numpy as np
import pytest
import torch
import yaml
from torch.nn import functional as F

from runner.core.batch import Output
from runner.loss import Loss
from tests.conftest import ROOT
from tests.loss.made import (
    BLIND,
    CONTEXT,
    FEATURES,
    IDS,
    MULTIHOT,
    OPTIONS,
    SOFT,
    B,
    C,
    arrays,
    batch,
    context,
    draw,
    expected,
    kinds,
    logits,
    order,
    reference,
    says,
    settings,
    value,
)


def make(option, **settings):
    """The loss of the option. Its memories are those after a step on some of the samples: not all alike."""
    node = yaml.safe_load((ROOT / "conf" / "loss" / f"{option}.yaml").read_text())
    module, name = node.pop("_target_").rsplit(".", 1)
    target = getattr(importlib.import_module(module), name)
    asked = inspect.signature(target).parameters
    given = {key: value for key, value in context(option).items() if key in asked}
    loss = target(**given, **(node | settings)).double()
    if type(loss).observe is not Loss.observe:
        kind, index = kinds(option)[0], torch.tensor([0, 2, 3, 7, 19, 12])
        loss.observe(Output(logits(option, kind, seed=8), FEATURES), batch(targets(option, kind), index))
    return loss


REAL = draw(B, seed=3)
REAL[4] = REAL[1]  # labels are tied, too


REALS = torch.stack([REAL, draw(B, seed=7)], 1)


def targets(option, kind):
    classes = context(option)["classes"]
    if kind == "ids":
        return IDS % classes
    if kind == "soft":
        return SOFT[:, :classes] / SOFT[:, :classes].sum(-1, keepdim=True)
    return MULTIHOT[:, :classes] if kind == "multihot" else REAL if kind == "real" else REALS


FIRST = [pytest.param(option, kinds(option)[0], id=option) for option in OPTIONS]


def test_there_are_losses():
    assert {"ce", "focal", "poly", "poly_focal", "mse"} <= set(OPTIONS)
    files = {option.removesuffix("_gp") for option in BLIND}  # of two of one class, one
    assert all((ROOT / "tests" / "loss" / f"test_{name}.py").exists() for name in files) and len(BLIND) > 1


# ---- the contract


@pytest.mark.parametrize(("option", "kind"), FIRST)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_shape_and_dtype(option, kind, dtype):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    loss = value(make(option).to(wide), logits(option, kind).to(dtype), targets(option, kind))
    assert loss.shape == (B,)
    assert loss.dtype == wide


@pytest.mark.parametrize(("option", "kind"), FIRST)
def test_is_computed_in_fp32(option, kind):
    z, loss = logits(option, kind).half(), make(option).float()
    torch.testing.assert_close(value(loss, z, targets(option, kind)), value(loss, z.float(), targets(option, kind)))


@pytest.mark.parametrize(("option", "setting", "kind"), settings())
def test_finite_at_extreme_logits(option, setting, kind):
    signs = torch.tensor([[1, -1, -1, -1, -1], [-1, -1, -1, -1, -1], [1, 1, 1, 1, 1.0]])
    rows = torch.cat([signs.roll(c, 1) for c in range(C)] + [torch.zeros(1, C)])  # right and wrong, alone and tied
    loss = make(option, **setting).float()
    for scale in (1e4, 65504.0, 20.0, 1e-4):
        for row in rows:
            z = (row * scale).repeat(B, 1)[:, : logits(option, kind).shape[-1]].requires_grad_()
            values = value(loss, z, targets(option, kind))
            assert torch.isfinite(values).all(), (scale, row, values)
            (gradient,) = torch.autograd.grad(values.sum(), z)
            assert torch.isfinite(gradient).all(), (scale, row, gradient)


@pytest.mark.parametrize("option", [option for option in OPTIONS if "ids" in kinds(option)])
def test_finite_at_the_largest_fp16_logits(option):
    classes = context(option)["classes"]
    for y in range(classes):
        z = torch.full((classes, classes), -65504.0, dtype=torch.float16).fill_diagonal_(65504.0).requires_grad_()
        values = value(make(option).float(), z, torch.full((classes,), y))
        (gradient,) = torch.autograd.grad(values.sum(), z)
        assert torch.isfinite(values).all() and torch.isfinite(gradient).all()


@pytest.mark.parametrize(("option", "setting", "kind"), settings())
def test_gradient_is_that_of_finite_differences(option, setting, kind):
    """Of the loss itself; where it detaches something, of its reference with that held."""
    loss, z, y = make(option, **setting), logits(option, kind).requires_grad_(), targets(option, kind)
    if "held" not in inspect.signature(reference(option).reference).parameters:
        assert torch.autograd.gradcheck(lambda z: value(loss, z, y), z, atol=1e-6)
        return
    weight, held, step = draw(B, seed=4), z.detach(), 1e-5  # weight: of the samples, so that none hides another
    (gradient,) = torch.autograd.grad((weight * value(loss, z, y)).sum(), z)
    for place in np.ndindex(*z.shape):
        sides = []
        for sign in (1, -1):
            moved = held.clone()
            moved[place] += sign * step
            sides.append((weight.numpy() * expected(option, setting, loss, moved, y, held)).sum())
        assert gradient[place].item() == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize(("option", "kind"), FIRST)
@pytest.mark.parametrize("training", [True, False])
def test_forward_changes_no_state(option, kind, training):
    loss = make(option).float().train(training)
    before = {name: tensor.clone() for name, tensor in loss.state_dict().items()}
    plain = {k: v for k, v in vars(loss).items() if isinstance(v, int | float | str | bool | type(None))}
    z = logits(option, kind, dtype=torch.float32)
    first, second = value(loss, z, targets(option, kind)), value(loss, z, targets(option, kind))
    assert torch.equal(first, second)
    assert loss.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in loss.state_dict().items())
    assert all(vars(loss)[k] == v for k, v in plain.items())


@pytest.mark.parametrize("option", OPTIONS)
def test_what_couples_the_samples_is_not_padded(option):
    assert make(option).padding == (not says(option, "COUPLED"))


@pytest.mark.parametrize("option", OPTIONS)
def test_who_remembers_says_how(option):
    assert (type(make(option)).observe is not Loss.observe) == (says(option, "observed") is not None)


@pytest.mark.parametrize(
    ("option", "setting", "kind"), [case for case in settings() if says(case.values[0], "observed")]
)
def test_observe_changes_the_rows_of_the_batch(option, setting, kind):
    """As its definition says, and no others; the state_dict has all of it."""
    loss, z, y = make(option, **setting), logits(option, kind, seed=5), targets(option, kind)
    index = torch.tensor([2, 11, 19, 5, 0, 7])  # seen before: 2, 19, 0, 7
    before = arrays(loss)
    observed = reference(option).observed
    given = {"features": FEATURES.numpy()} if "features" in inspect.signature(observed).parameters else {}
    after = observed(before, z.numpy(), y.numpy(), index.numpy(), **given, **setting)
    loss.observe(Output(z, FEATURES), batch(y, index))
    trained = dict(loss.named_parameters())
    found = {name: memory for name, memory in arrays(loss).items() if name not in trained}
    assert found.keys() == after.keys()
    assert all(np.array_equal(found[name], after[name]) for name in found if found[name].dtype.kind == "i")
    rest = np.setdiff1d(np.arange(CONTEXT["samples"]), index.numpy())
    for name, memory in found.items():
        np.testing.assert_allclose(memory, after[name], rtol=1e-10, atol=1e-12)
        if memory.shape[:1] == (CONTEXT["samples"],):
            assert np.array_equal(memory[rest], before[name][rest])
            assert not np.array_equal(memory[index.numpy()], before[name][index.numpy()])
    other = make(option, **setting)
    other.load_state_dict(loss.state_dict())
    torch.testing.assert_close(value(other, z, y), value(loss, z, y), rtol=0, atol=0)
    np.testing.assert_allclose(value(loss, z, y).numpy(), expected(option, setting, loss, z, y), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("option", "setting", "kind"),
    [case for case in settings() if not says(case.values[0], "observed") and not says(case.values[0], "COUPLED")],
)
def test_leading_axes_broadcast(option, setting, kind):
    """But for memories, which have a row for a sample, and for what the samples of a batch decide together."""
    loss, z = make(option, **setting), logits(option, kind, B, 3)
    y = torch.stack([targets(option, kind)] * 3, 1)
    tokens = value(loss, z, y)
    assert tokens.shape == (B, 3)
    for t in range(3):
        torch.testing.assert_close(tokens[:, t], value(loss, z[:, t], y[:, t]))


@pytest.mark.parametrize(("option", "setting", "kind"), settings("soft"))
def test_one_hot_targets_equal_class_ids(option, setting, kind):
    if "ids" in kinds(option):
        loss, z, y = make(option, **setting), logits(option, kind), targets(option, "ids")
        torch.testing.assert_close(value(loss, z, F.one_hot(y, z.shape[-1]).float()), value(loss, z, y))


@pytest.mark.parametrize(("option", "setting", "kind"), settings())
def test_values_of_the_formula(option, setting, kind):
    loss, z, y = make(option, **setting), logits(option, kind), targets(option, kind)
    values = expected(option, setting, loss, z, y)
    assert values.shape == (B,)
    np.testing.assert_allclose(value(loss, z, y).detach().numpy(), values, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("option", "setting", "kind"), settings())
@pytest.mark.parametrize("shared", [True, False], ids=["same data", "own data"])
def test_replica_axis_equals_a_loop(option, setting, kind, shared):
    loss, z, own = make(option, **setting), logits(option, kind, 3, B), targets(option, kind)
    y = torch.stack([own] * 3 if shared else [own, own.roll(1, 0), own.flip(0)])
    index = order(B)

    def one(z, y):
        return loss(Output(z, FEATURES), batch(y, index)).sum()

    both = torch.func.vmap(torch.func.grad_and_value(one), in_dims=(0, None if shared else 0))
    gradients, values = both(z, y[0] if shared else y)
    for k in range(3):
        row = z[k].clone().requires_grad_()
        alone = one(row, y[k])
        torch.testing.assert_close(values[k], alone.detach())
        torch.testing.assert_close(gradients[k], torch.autograd.grad(alone, row)[0])
