"""The contract of every schedule in conf/schedule, and values against torch.optim.lr_scheduler and by hand."""

import importlib
from math import cos, pi

import pytest
import torch
import yaml
from torch.optim import lr_scheduler as theirs

from runner.schedule.constant import Constant
from runner.schedule.cosine import Cosine
from runner.schedule.linear import Linear
from runner.schedule.multistep import MultiStep
from tests.conftest import ROOT

OPTIONS = sorted(path.stem for path in (ROOT / "conf" / "schedule").glob("*.yaml"))
EPOCHS, PER_EPOCH = 8, 5
STEPS = EPOCHS * PER_EPOCH


def make(option, **settings):
    node = yaml.safe_load((ROOT / "conf" / "schedule" / f"{option}.yaml").read_text())
    module, name = node.pop("_target_").rsplit(".", 1)
    return getattr(importlib.import_module(module), name)(**(node | settings))


def factors(schedule, steps=STEPS):
    return [schedule(step, steps, PER_EPOCH) for step in range(steps)]


def torch_factors(build, steps=STEPS):
    """The factors of one of torch's schedulers, stepped once per step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler, found = build(optimizer), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"] / 0.3)
        optimizer.step()
        scheduler.step()
    return found


def test_there_are_schedules():
    assert {"constant", "cosine", "linear", "multistep"} <= set(OPTIONS)


@pytest.mark.parametrize("option", OPTIONS)
def test_is_a_pure_function_of_the_step(option):
    schedule, again = make(option, warmup=1.5), make(option, warmup=1.5)
    forwards = factors(schedule)
    assert [schedule(step, STEPS, PER_EPOCH) for step in reversed(range(STEPS))] == forwards[::-1]
    assert [again(step, STEPS, PER_EPOCH) for step in range(20, STEPS)] == forwards[20:]
    assert all(isinstance(factor, float) and 0 < factor <= 1 for factor in forwards)


@pytest.mark.parametrize("option", OPTIONS)
def test_starts_at_the_base_learning_rate(option):
    assert make(option)(0, STEPS, PER_EPOCH) == 1.0


@pytest.mark.parametrize("option", OPTIONS)
def test_warm_up_comes_before_the_schedule(option):
    """7 of 40 steps (1.4 epochs) rise in a straight line to the base value; the rest is the schedule over 33 steps."""
    warmed = factors(make(option, warmup=1.4))
    assert warmed[:7] == pytest.approx([1 / 7, 2 / 7, 3 / 7, 4 / 7, 5 / 7, 6 / 7, 1])
    assert warmed[7] == 1.0
    if option not in ("multistep", "wsd"):  # which count from the start of training
        assert warmed[7:] == pytest.approx(factors(make(option), steps=33))


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("warmup", [8.0, 100.0])
def test_warm_up_of_the_whole_training(option, warmup):
    settings = {"milestones": [200]} if option == "multistep" else {}
    assert factors(make(option, warmup=warmup, **settings)) == pytest.approx([(i + 1) / 40 for i in range(40)])


def test_constant():
    assert factors(Constant()) == [1.0] * STEPS == pytest.approx(torch_factors(lambda o: theirs.ConstantLR(o, 1.0)))


@pytest.mark.parametrize("final", [0.0, 0.01, 1.0])
def test_cosine_equals_torch(final):
    expected = torch_factors(lambda o: theirs.CosineAnnealingLR(o, STEPS, eta_min=0.3 * final))
    assert factors(Cosine(final=final)) == pytest.approx(expected, abs=1e-9)


def test_cosine_by_hand():
    found = factors(Cosine(final=0.1))
    assert found[10] == pytest.approx(0.1 + 0.9 * (1 + 0.5**0.5) / 2)  # a quarter: cos(pi / 4) = sqrt(1/2)
    assert found[20] == pytest.approx(0.55)  # half way: 0.1 + 0.9 / 2
    assert found[39] == pytest.approx(0.1 + 0.9 * (1 + cos(39 / 40 * pi)) / 2)


@pytest.mark.parametrize("final", [0.0, 0.25, 1.0])
def test_linear_equals_torch(final):
    expected = torch_factors(lambda o: theirs.LinearLR(o, start_factor=1.0, end_factor=final, total_iters=STEPS))
    assert factors(Linear(final=final)) == pytest.approx(expected, abs=1e-9)


def test_multistep_equals_torch():
    expected = torch_factors(lambda o: theirs.MultiStepLR(o, [3 * PER_EPOCH, 5 * PER_EPOCH], gamma=0.2))
    assert factors(MultiStep([3, 5], gamma=0.2)) == pytest.approx(expected)


def test_warm_up_equals_torch():
    def build(optimizer):
        warm = theirs.LinearLR(optimizer, start_factor=1 / 10, end_factor=1.0, total_iters=9)
        return theirs.SequentialLR(optimizer, [warm, theirs.CosineAnnealingLR(optimizer, STEPS - 10)], milestones=[10])

    assert factors(Cosine(warmup=2.0)) == pytest.approx(torch_factors(build), abs=1e-9)


def test_milestones_count_from_the_start_of_training():
    found = factors(MultiStep([2, 4], gamma=0.5, warmup=1.0))
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert found[5:] == [1.0] * 5 + [0.5] * 10 + [0.25] * 20  # epochs 1; 2 and 3; 4 to 7
    assert factors(MultiStep([1], gamma=0.5, warmup=1.0))[4:6] == pytest.approx([1.0, 0.5])


def test_milestones_within_an_epoch_and_beyond_the_end():
    assert factors(MultiStep([0.6, 100], gamma=0.5)) == [1.0] * 3 + [0.5] * 37
    assert factors(MultiStep([])) == [1.0] * STEPS


@pytest.mark.parametrize("steps_per_epoch", [1, 3, 7, 391, 1251])
def test_a_milestone_falls_on_the_first_step_of_its_epoch(steps_per_epoch):
    schedule = MultiStep([100, 150])
    for epoch, before, after in ((100, 1.0, 0.1), (150, 0.1, 0.01)):
        first = epoch * steps_per_epoch
        assert schedule(first - 1, 200 * steps_per_epoch, steps_per_epoch) == pytest.approx(before)
        assert schedule(first, 200 * steps_per_epoch, steps_per_epoch) == pytest.approx(after)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"milestones": [150, 100]}, "increase strictly"),
        ({"milestones": [100, 100]}, "increase strictly"),
        ({"milestones": [3, 10], "warmup": 5.0}, "warm-up of 5 epochs"),
    ],
)
def test_milestones_that_make_no_sense(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        MultiStep(**settings)
    assert "\n" not in str(error.value)
