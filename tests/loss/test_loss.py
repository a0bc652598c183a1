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
from dataclasses import replace
from functools import lru_cache
from math import log

import numpy as np
import pytest
import torch
import yaml
from torch.nn import functional as F

from runner.core import distributed
from runner.core.batch import Batch, Output
from runner.loss import Loss, log_rest, remember
from runner.loss.aldr_kl import ALDRKL
from runner.loss.asl import Asymmetric, AsymmetricMultilabel
from runner.loss.ce import CrossEntropy
from runner.loss.comp_sum import CompSum
from runner.loss.dual_focal import DualFocal
from runner.loss.elr import ELR
from runner.loss.encouraging import Encouraging
from runner.loss.ensloss import EnsLoss, normal
from runner.loss.evidential import Evidential
from runner.loss.focal import Focal
from runner.loss.ldr_kl import LDRKL
from runner.loss.mse import Square
from runner.loss.poly import Poly
from runner.loss.poly_focal import PolyFocal
from runner.loss.squentropy import Squentropy
from runner.loss.stablemax import StableMax
from runner.loss.z_loss_spherical import SphericalZ
from tests.conftest import ROOT

OPTIONS = sorted(path.stem for path in (ROOT / "conf" / "loss").glob("*.yaml"))
B, C, D = 6, 5, 3
CONTEXT = {"classes": C, "samples": 20, "class_counts": [8, 5, 4, 2, 1], "features": D, "bag": 4}


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


def context(option):
    """What the data set knows, with as many classes as the option is defined for."""
    classes = says(option, "CLASSES") or C
    return CONTEXT | {"classes": classes, "class_counts": CONTEXT["class_counts"][:classes]}


@lru_cache
def reference(option):
    path = ROOT / "tests" / "reference" / f"loss_{option}.py"
    assert path.exists(), f"conf/loss/{option}.yaml needs an independent formula in {path.relative_to(ROOT)}"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arrays(loss):
    return {name: tensor.detach().numpy().copy() for name, tensor in loss.state_dict().items()}


def expected(option, setting, loss, z, y, held=None):
    """The reference's values, with what it asks for."""
    z, held = z.detach().numpy(), None if held is None else held.numpy()
    return reference(option).reference(**inputs(option, loss, z, y.numpy(), held), **setting)


def inputs(option, loss, z, y, held=None):
    """{name: value} of what the option's reference asks for."""
    given = {**context(option), "logits": z, "y": y, "held": z if held is None else held, "state": arrays(loss)}
    given |= {"index": order(B).numpy(), "features": FEATURES.numpy(), "x": X.numpy()}
    asked = inspect.signature(reference(option).reference).parameters
    return {name: what for name, what in given.items() if name in asked}


def order(rows):
    """Which training samples the rows of a batch are: not in their order, and the two bags of six mixed."""
    return torch.tensor([i for i in (4, 0, 3, 1, 5, 2) if i < rows]) if rows <= B else torch.arange(rows)


def batch(y, index=None):
    return Batch(X[: len(y)], y, order(len(y)) if index is None else index)


def value(loss, logits, y):
    features = FEATURES.to(logits.dtype)[: len(logits)]
    return loss(
        Output(logits, features.reshape(-1, *[1] * (logits.dim() - 2), D).expand(*logits.shape[:-1], D)), batch(y)
    )


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)) * 2


FEATURES = draw(B, D, seed=2).bfloat16().double()  # the same in every dtype
X = draw(B, D, seed=9)
IDS = torch.tensor([0, 4, 2, 2, 1, 3])
SOFT = torch.softmax(draw(B, C, seed=1), -1)
MULTIHOT = torch.tensor(
    [[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 0, 0], [0, 1, 1, 0, 1], [1, 0, 1, 0, 0.0]]
)
REAL = draw(B, seed=3)
REAL[4] = REAL[1]  # labels are tied, too
REALS = torch.stack([REAL, draw(B, seed=7)], 1)


def logits(option, kind, *lead, dtype=torch.float64, seed=0):
    width = {"real": 1, "reals": 2}.get(kind, 0) * (says(option, "OUTPUTS") or 1)
    return draw(*(lead or (B,)), width or context(option)["classes"], dtype=dtype, seed=seed)


def targets(option, kind):
    classes = context(option)["classes"]
    if kind == "ids":
        return IDS % classes
    if kind == "soft":
        return SOFT[:, :classes] / SOFT[:, :classes].sum(-1, keepdim=True)
    return MULTIHOT[:, :classes] if kind == "multihot" else REAL if kind == "real" else REALS


def kinds(option):
    """The kinds of targets of the option; one without a reference fails when it comes to its values."""
    return says(option, "TARGETS") or ("ids", "soft")


def settings(*wanted):
    """(option, one of its reference's settings, one of its kinds of targets), of the kinds wanted."""
    found = []
    for option in OPTIONS:
        for setting in says(option, "SETTINGS") or [{}]:
            name = "-".join([option, *(f"{k}={v}" for k, v in setting.items())])
            found += [
                pytest.param(option, setting, kind, id=f"{name}-{kind}")
                for kind in kinds(option)
                if kind in wanted or not wanted
            ]
    return found


def says(option, name):
    """What the option's reference says by this name, or None."""
    path = ROOT / "tests" / "reference" / f"loss_{option}.py"
    return getattr(reference(option), name, None) if path.exists() else None


FIRST = [pytest.param(option, kinds(option)[0], id=option) for option in OPTIONS]


def test_there_are_losses():
    assert {"ce", "focal", "poly", "poly_focal", "mse"} <= set(OPTIONS)


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


# ---- points worked out by hand: p = softmax(ln 2, 0, 0) = (1/2, 1/4, 1/4), targets 0 and 1


HALF = torch.tensor([[log(2), 0, 0], [log(2), 0, 0]], dtype=torch.float64)
POINTS = [
    # -ln(1/2) and -ln(1/4)
    (CrossEntropy(), [0.6931471806, 1.3862943611]),
    # s = 0.3: q = (0.8, 0.1, 0.1) gives 0.8 ln 2 + 0.2 ln 4 = 1.2 ln 2,
    # and q = (0.1, 0.8, 0.1) gives 0.1 ln 2 + 0.9 ln 4 = 1.9 ln 2
    (CrossEntropy(0.3), [0.8317766167, 1.3169796431]),
    # (1/2)^2 ln 2 and (3/4)^2 ln 4 = 0.5625 * 1.3862943611
    (Focal(2.0), [0.1732867951, 0.7797905781]),
    # (1/2)^(1/2) ln 2 = 0.7071067812 * 0.6931471806 and (3/4)^(1/2) ln 4 = 0.8660254038 * 1.3862943611
    (Focal(0.5), [0.4901290717, 1.2005661339]),
    # ln 2 + 2 * 1/2 and ln 4 + 2 * 3/4
    (Poly(2.0), [1.6931471806, 2.8862943611]),
    # s = 0.3: 1.2 ln 2 + 0.8 * 1/2 + 0.2 * 3/4 = + 0.55 and 1.9 ln 2 + 0.1 * 1/2 + 0.9 * 3/4 = + 0.725
    (Poly(1.0, 0.3), [1.3817766167, 2.0419796431]),
    # 0.1732867951 + (1/2)^3 and 0.7797905781 + (3/4)^3 = + 0.421875
    (PolyFocal(1.0, 2.0), [0.2982867951, 1.2016655781]),
    # 1 / p - 1
    (CompSum(0.0), [1.0, 3.0]),
    # (1 - sqrt p) / 0.5 = 2 (1 - 0.7071067812) and 2 (1 - 1/2)
    (CompSum(1.5), [0.5857864376, 1.0]),
    # 1 - p
    (CompSum(2.0), [0.5, 0.75]),
    # ln 1/3 (1 + 2 * 1/2 + 2 * 1/2) and ln 1/3 (2 * 2 + 1 + 2 * 1) = ln 7/3, 2 being exp of the margin
    (LDRKL(1.0, log(2)), [0.0, 0.8472978604]),
    # 1/2 ln 1/3 (1 + (1/2)^2 + (1/2)^2) = 1/2 ln 1/2 and 1/2 ln 1/3 (2^2 + 1 + 1) = 1/2 ln 2
    (LDRKL(0.5, 0.0), [-0.3465735903, 0.3465735903]),
    # ln 2 + 0 and ln 4 + (ln 2)^2 / 2
    (Squentropy(), [0.6931471806, 1.6265208681]),
    # (1 - 1/2 + 1/4)^2 ln 2 and, as no class is below 1/4, (1 - 1/4)^2 ln 4
    (DualFocal(2.0), [0.3898952891, 0.7797905781]),
    # ln 2 + ln 1/2 and ln 4 + ln 3/4
    (Encouraging(0.75), [0.0, 1.0986122887]),
    # ln 2 + ln 4/5 - (1/2 - 1/5) / (4/5) = ln 8/5 - 0.375 and ln 4 + ln 4/5 - (1/4 - 1/5) / (4/5) = ln 16/5 - 0.0625
    (Encouraging(0.2), [0.0950036292, 1.1006508098]),
    # away from the mean: (2/3, -1/3, -1/3) ln 2, of std sqrt(2) / 3 ln 2: ln(1 + exp(-sqrt 2)), ln(1 + exp(sqrt(1/2)))
    (SphericalZ(), [0.2176217216, 1.1079403077]),
    # s = 0.3: 0.8 * 1/2 ln 2 + 2 * 0.1 (1/4)^2 ln 4 and 0.8 * 3/4 ln 4 + 0.1 (1/2)^2 ln 2 + 0.1 (1/4)^2 ln 4
    (Asymmetric(1.0, 2.0, 0.3), [0.2945875517, 0.8577696359]),
    # t = p / 2 at first, <t, p> = 1/2 (1/4 + 1/16 + 1/16) = 0.1875: ln 2 + 2 ln 0.8125 and ln 4 + 2 ln 0.8125
    (ELR(0.5, 2.0, classes=3, samples=2), [0.2778684510, 0.9710156316]),
]


@pytest.mark.parametrize(("loss", "expected"), POINTS, ids=lambda value: getattr(value, "_get_name", str)())
def test_hand_computed(loss, expected):
    torch.testing.assert_close(value(loss, HALF, torch.tensor([0, 1])), torch.tensor(expected, dtype=torch.float64))


def test_square_by_hand():
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    # ((2 - 1)^2 + 0^2 + (-1)^2) / 3
    torch.testing.assert_close(value(Square(), logits, torch.tensor([0])), torch.tensor([2 / 3]))
    # (15 (2 - 30)^2 + 0 + 1) / 3 = (11760 + 1) / 3
    torch.testing.assert_close(value(Square(15.0, 30.0), logits, torch.tensor([0])), torch.tensor([11761 / 3]))


def test_stablemax_by_hand():
    """s(1, 0, -1) = (2, 1, 1/2), of sum 7/2: ln 7/4 and ln 7."""
    logits = torch.tensor([[1.0, 0.0, -1.0]] * 2, dtype=torch.float64)
    torch.testing.assert_close(
        value(StableMax(), logits, torch.tensor([0, 2])), torch.tensor([log(7 / 4), log(7)], dtype=torch.float64)
    )
    zero = torch.zeros(1, 3, requires_grad=True)  # s'(0) = 1 from both sides, s(0) = 1: p - y with p = 1/3
    (gradient,) = torch.autograd.grad(value(StableMax(), zero, torch.tensor([0])), zero)
    torch.testing.assert_close(gradient, torch.tensor([[-2 / 3, 1 / 3, 1 / 3]]))


def test_a_target_of_elr_by_hand():
    """beta = 1/2: t is p / 2 after one step and 3/4 p in the next, <t, p> = 3/4 * 0.375: ln 2 + 2 ln 0.71875."""
    loss = ELR(0.5, 2.0, classes=3, samples=4).double()
    out, y, index = Output(HALF, HALF), torch.tensor([0, 0]), torch.tensor([3, 1])
    loss.observe(out, batch(y, index))
    p = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    torch.testing.assert_close(loss.targets, torch.stack([0 * p, p / 2, 0 * p, p / 2]))
    torch.testing.assert_close(loss(out, batch(y, index)), torch.full((2,), 0.0326638068, dtype=torch.float64))


def test_a_temperature_of_aldr_kl_by_hand():
    """A sure sample: q = (1, 0, 0), KL = ln 3, so t = 2 (1 - 1/4) = 3/2 for lam = 2, alpha = 4, and a = 2 ln 3.

    The label 0: 3/2 ln 1/3 - ln 3 (1/2)^2 = -7/4 ln 3; the label 1: 900 more. A sample with equal logits stays at 2 and
    costs nothing.
    """
    loss = ALDRKL(2.0, 4.0, 0.0, samples=3).double()
    z = torch.tensor([[900.0, 0, 0], [900.0, 0, 0], [1.0, 1, 1]], dtype=torch.float64)
    expected = torch.tensor([-7 / 4 * log(3), 900 - 7 / 4 * log(3), 0], dtype=torch.float64)
    torch.testing.assert_close(value(loss, z, torch.tensor([0, 1, 2])), expected)
    loss.observe(Output(z, z), batch(torch.tensor([0, 1, 2]), torch.tensor([2, 0, 1])))
    torch.testing.assert_close(loss.temperatures, torch.tensor([1.5, 2.0, 1.5], dtype=torch.float64))


def test_asl_multilabel_by_hand():
    """p = 1/2, shift 0.05, exponents 1 and 4: 1/2 ln 2 and -0.45^4 ln 0.55; below the shift a negative is free."""
    logits = torch.tensor([[0.0, 0.0, -9.0]], dtype=torch.float64)
    found = value(AsymmetricMultilabel(1.0), logits, torch.tensor([[1.0, 0.0, 0.0]]))
    torch.testing.assert_close(found, torch.tensor([0.3465735903 + 0.04100625 * 0.5978370008], dtype=torch.float64))


def test_the_focusing_weights_of_asl_have_no_gradient():
    """z = (0, 2), y = (1, 0): -(1/2) (1/2), and m^4 p (1 - p) / (1 - p + 0.05) with p = 0.8808, m = 0.8308."""
    logits, y = torch.tensor([[0.0, 2.0]], dtype=torch.float64, requires_grad=True), torch.tensor([[1.0, 0.0]])
    for stop, slopes in ((True, [[-0.25, 0.2956]]), (False, [[-0.4233, 0.7235]])):
        (found,) = torch.autograd.grad(value(AsymmetricMultilabel(1.0, stop_gradient=stop), logits, y), logits)
        np.testing.assert_allclose(found.numpy(), slopes, atol=5e-5)


def test_evidential_by_hand():
    """Two classes, z = 0: pl = 1/2, I = b_0 = b_1 = 1/4, U = 1/2, alpha = 2 * 1/4 / (1/2) + 1 = 2.

    ln(4 / 2), (1/2 - 3/4)^2 and KL(Dir(1, 2) || Dir(1, 1)) = ln Gamma(3) + psi(2) - psi(3) = ln 2 - 1/2.
    """
    found = value(Evidential(2.0, 0.5, 0), torch.zeros(1, 2, dtype=torch.float64), torch.tensor([0]))
    assert found.item() == pytest.approx(log(2) + 2 / 16 + (log(2) - 1 / 2) / 2, rel=2e-6)  # 1e-6 is added to U


def test_evidential_begins_with_cross_entropy():
    """Of each class against the rest, its mean: ln 2 at z = 0, in the epochs before `begin`."""
    loss, z, y = Evidential(begin=3), torch.zeros(1, 4, dtype=torch.float64), torch.tensor([1])
    found = [loss(Output(z, z), replace(batch(y), epoch=epoch)).item() for epoch in range(5)]
    assert found[0] == found[1] == found[2] == pytest.approx(found[3] + log(2)) and found[3] == found[4]


def test_ensloss_by_hand():
    """n = (-ln 2, 0, ln 4): h = (1/2, 1, 4), slopes -1, -1 (for -4) and -1/2; margins 2, -1 and 1/2.

    By rank the margin -1 has the slope -1, 1/2 has -1, and 2 has -1/2, which is divided by 2; 1e-6 is subtracted.
    """
    loss = EnsLoss(classes=2, samples=3).double()
    loss.draws.copy_(torch.tensor([-log(2), 0.0, log(4)]))
    z = torch.tensor([[0.0, 2.0], [0.0, -1.0], [1.0, 0.5]], dtype=torch.float64, requires_grad=True)
    found = value(loss, z, torch.tensor([1, 1, 0]))
    slopes = torch.tensor([-0.250001, -1.000001, -1.000001], dtype=torch.float64)
    torch.testing.assert_close(found, slopes * torch.tensor([2.0, -1.0, 0.5]), atol=1e-7, rtol=0)
    (gradient,) = torch.autograd.grad(found.sum(), z)
    sign = torch.tensor([[-1.0, 1.0], [-1.0, 1.0], [1.0, -1.0]])
    torch.testing.assert_close(gradient, slopes[:, None] * sign, atol=1e-7, rtol=0)


def test_what_ensloss_draws_is_normal_and_new_in_every_step():
    from scipy import stats

    loss = EnsLoss(classes=2, samples=20000)
    first = loss.draws.clone()
    index = torch.arange(20000)
    loss.observe(Output(torch.zeros(20000, 2), torch.zeros(20000, 2)), batch(torch.zeros(20000).long(), index))
    for draws in (first, loss.draws):
        assert stats.kstest(draws.numpy(), "norm").pvalue > 1e-3
    assert abs(stats.spearmanr(first, loss.draws).statistic) < 0.03  # four standard deviations
    assert abs(stats.spearmanr(first[1:], first[:-1]).statistic) < 0.03
    assert torch.equal(normal(loss.keys), loss.draws)
    torch.manual_seed(0)
    again = EnsLoss(classes=2, samples=20000)
    torch.manual_seed(1)
    assert torch.equal(again.draws, first)
    assert not torch.equal(EnsLoss(classes=2, samples=20000).draws, first)


def test_ensloss_has_two_classes():
    with pytest.raises(ValueError, match="two classes, and this data set has 3"):
        EnsLoss(classes=3, samples=2)


def test_poly_equals_the_values_of_optax():
    """optax computed these for its own tests with the TensorFlow code that the paper prints."""
    logits = torch.tensor([[0.14, 1.456, 2.356, -0.124, -2.47]], dtype=torch.float64)
    y = torch.tensor([[0.1, 0.15, 0.2, 0.25, 0.3]], dtype=torch.float64)
    for epsilon, expected in {2: 4.5317, 1: 3.7153, -1: 2.0827, 0: 2.8990, 1.15: 3.8378, 5.45: 7.3480}.items():
        assert value(Poly(epsilon), logits, y).item() == pytest.approx(expected, abs=1e-4)


# ---- identities


@pytest.mark.parametrize("y", [IDS, SOFT], ids=["ids", "soft"])
def test_special_cases(y):
    z = draw(B, C)
    ce = F.cross_entropy(z, y, reduction="none")
    torch.testing.assert_close(value(CrossEntropy(), z, y), ce)
    torch.testing.assert_close(value(Focal(0.0), z, y), ce)
    torch.testing.assert_close(value(Poly(0.0), z, y), ce)
    torch.testing.assert_close(value(PolyFocal(0.0, 0.0), z, y), ce)
    torch.testing.assert_close(value(PolyFocal(0.0, 1.5), z, y), value(Focal(1.5), z, y))
    torch.testing.assert_close(value(PolyFocal(0.7, 0.0), z, y), value(Poly(0.7), z, y))
    smooth = F.cross_entropy(z, y, reduction="none", label_smoothing=0.2)
    torch.testing.assert_close(value(CrossEntropy(0.2), z, y), smooth)
    torch.testing.assert_close(value(Poly(0.0, 0.2), z, y), smooth)


@pytest.mark.parametrize("y", [IDS, SOFT], ids=["ids", "soft"])
def test_special_cases_of_later_losses(y):
    z = draw(B, C)
    ce, p = F.cross_entropy(z, y, reduction="none"), torch.softmax(z, -1)
    chance = (p * (F.one_hot(y, C) if y.dim() == 1 else y)).sum(-1)
    torch.testing.assert_close(value(CompSum(1.0), z, y), ce)
    torch.testing.assert_close(value(CompSum(2.0), z, y), 1 - chance)
    torch.testing.assert_close(value(LDRKL(1.0, 0.0), z, y), ce - log(C))
    torch.testing.assert_close(value(LDRKL(2.0, 0.0), z, y), 2 * (value(CrossEntropy(), z / 2, y) - log(C)))
    torch.testing.assert_close(value(ALDRKL(0.7, 1e9, 0.3, samples=B), z, y), value(LDRKL(0.7, 0.3), z, y))
    torch.testing.assert_close(value(DualFocal(0.0), z, y), ce)
    torch.testing.assert_close(value(Encouraging(0.0), z, y), value(Poly(1.0), z, y) - 1)  # the bonus is -p
    torch.testing.assert_close(value(StableMax(), z, y), value(CrossEntropy(), z.sign() * torch.log1p(z.abs()), y))
    smooth = F.cross_entropy(z, y, reduction="none", label_smoothing=0.2)
    torch.testing.assert_close(value(Asymmetric(0.0, 0.0, 0.2), z, y), smooth)
    torch.testing.assert_close(value(Asymmetric(1.5, 4.0, 0.0), z, y), value(Focal(1.5), z, y))
    elr = ELR(lam=0.0, classes=C, samples=B)
    elr.observe(Output(draw(B, C, seed=6), FEATURES), batch(y))
    torch.testing.assert_close(value(elr, z, y), ce)


def test_ldr_kl_without_temperature_is_the_hinge_of_crammer_and_singer():
    z = draw(B, C)
    gains = z - z.gather(-1, IDS[:, None]) + 0.7 * (1 - F.one_hot(IDS, C).double())
    torch.testing.assert_close(value(LDRKL(1e-9, 0.7), z, IDS), gains.amax(-1), atol=1e-8, rtol=0)


def test_dual_focal_of_the_least_likely_class_is_focal():
    z = draw(B, C)
    torch.testing.assert_close(value(DualFocal(3.0), z, z.argmin(-1)), value(Focal(3.0), z, z.argmin(-1)))


def test_the_spherical_z_loss_sees_neither_shift_nor_scale():
    z, loss = draw(B, C), SphericalZ(2.0, 0.5)
    torch.testing.assert_close(value(loss, 7 * z - 3, IDS), value(loss, z, IDS))
    assert not torch.allclose(value(loss, -z, IDS), value(loss, z, IDS))


def test_log_rest_leaves_one_class_out():
    z = torch.cat([draw(B, C), torch.tensor([[30.0, 0, 0, 1, 1], [2.0, 2, 2, 2, 2], [-900.0, 900, 0, 0, 0]])])
    for c in range(C):
        others = torch.cat([z[:, :c], z[:, c + 1 :]], 1)
        torch.testing.assert_close(log_rest(z)[:, c], others.logsumexp(-1))


def test_a_loss_that_is_almost_nothing_is_not_rounded_away():
    """Of (30, 0, 0, 0, 0), in fp32: ln(1 + 4 e^-30) = 4 e^-30, and so is the gradient's size."""
    z = torch.tensor([[30.0, 0, 0, 0, 0]], requires_grad=True)
    rest = log_rest(z)[0, 0] - z[0, 0]
    (gradient,) = torch.autograd.grad(F.softplus(rest), z)
    torch.testing.assert_close(gradient[0, 0].item(), -4 * np.exp(-30), rtol=1e-5, atol=0)
    assert F.cross_entropy(z, torch.tensor([0])).item() == 0  # which is


def test_asl_equals_public_implementations():
    """Values and gradients. timm's are in fp32, and sums or means over a batch."""
    from timm.loss import AsymmetricLossMultiLabel, AsymmetricLossSingleLabel
    from torchvision.ops import sigmoid_focal_loss

    z = draw(B, C).requires_grad_()

    def both(ours, theirs):
        ours, theirs = ours.sum().float(), theirs.sum().float()
        torch.testing.assert_close(ours, theirs)
        gradients = [torch.autograd.grad(loss, z)[0].float() for loss in (ours, theirs)]
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)

    def each(loss, y):
        return sum(loss(z[row : row + 1], y[row : row + 1]) for row in range(B))

    for stop in (True, False):
        timm = AsymmetricLossMultiLabel(3, 2, clip=0.1, disable_torch_grad_focal_loss=stop)
        both(value(AsymmetricMultilabel(2.0, 3.0, 0.1, stop), z, MULTIHOT), each(timm, MULTIHOT))
    timm = AsymmetricLossSingleLabel(gamma_neg=3, gamma_pos=2, eps=0.2)
    both(value(Asymmetric(2.0, 3.0, 0.2), z, IDS), each(timm, IDS))
    focal = sigmoid_focal_loss(z, MULTIHOT.double(), alpha=-1, gamma=1.7)
    both(value(AsymmetricMultilabel(1.7, 1.7, 0.0, False), z, MULTIHOT), focal)
    entropy = F.binary_cross_entropy_with_logits(z, MULTIHOT.double(), reduction="none")
    both(value(AsymmetricMultilabel(0.0, 0.0, 0.0), z, MULTIHOT), entropy)


def test_memories_have_the_rows_of_every_process(monkeypatch):
    """Each process sees its share of the batch; all gather all shares."""
    other = torch.tensor([4, 0]), torch.tensor([[5.0], [6.0]])
    monkeypatch.setattr(distributed, "world", 2)
    monkeypatch.setattr(distributed, "all_of", lambda own: [own, other])
    memory = torch.zeros(5, 1)
    remember(memory, torch.tensor([1, 3]), torch.tensor([[7.0], [8.0]], dtype=torch.float64))
    assert torch.equal(memory, torch.tensor([[6.0], [7.0], [0.0], [8.0], [5.0]]))


def test_plain_square_is_the_mean_square_to_one_hot():
    z = draw(B, C)
    torch.testing.assert_close(
        value(Square(), z, IDS), F.mse_loss(z, F.one_hot(IDS, C).double(), reduction="none").mean(-1)
    )


@pytest.mark.parametrize(
    "loss",
    [
        *(
            CrossEntropy(0.1),
            Focal(),
            Poly(),
            PolyFocal(),
            Square(15.0, 30.0),
            CompSum(),
            LDRKL(0.5, 1.0),
            Squentropy(),
        ),
        *(DualFocal(), StableMax(), Encouraging(), SphericalZ(), Asymmetric(1.0), ALDRKL(samples=B)),
        ELR(classes=C, samples=B),
    ],
    ids=str,
)
def test_mixed_targets_mix_the_losses(loss):
    """mixup, arXiv:1710.09412: training on the mixed target is the mixture of the two targets' losses."""
    z, other, lam = draw(B, C), IDS.roll(1), 0.3
    mixed = lam * F.one_hot(IDS, C) + (1 - lam) * F.one_hot(other, C)
    torch.testing.assert_close(value(loss, z, mixed), lam * value(loss, z, IDS) + (1 - lam) * value(loss, z, other))


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        (CrossEntropy(), "label_smoothing"),
        (Focal(), "gamma"),
        (Poly(), "epsilon"),
        (PolyFocal(), "gamma"),
        (Square(), "k"),
        (CompSum(), "tau"),
        (LDRKL(), "margin"),
        (ALDRKL(samples=B), "margin"),
        (DualFocal(), "gamma"),
        (Encouraging(), "log_end"),
        (SphericalZ(), "b"),
        (Asymmetric(), "gamma_neg"),
        (ELR(classes=C, samples=B), "lam"),
        (Evidential(), "kl"),
    ],
    ids=lambda value: value if isinstance(value, str) else value._get_name(),
)
def test_a_hyperparameter_may_differ_between_replicas(loss, name):
    z, settings = draw(B, C), torch.tensor([0.0, 0.3, 0.9, 1.0] if name != "log_end" else [0.0, 0.3, 0.9])

    def one(setting):
        setattr(loss, name, setting)
        return value(loss, z, IDS)

    packed = torch.func.vmap(one)(settings)
    torch.testing.assert_close(packed, torch.stack([one(setting.item()) for setting in settings]), rtol=1e-6, atol=1e-7)
