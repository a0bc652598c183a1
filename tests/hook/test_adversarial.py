"""FGSM and PGD: closed forms for linear models, whole steps against plain PyTorch, bounds, keys."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from runner.command.build import build, locate, parameters
from runner.command.listing import conf_dir, options
from runner.core.batch import Output
from runner.core.mistake import ConfigError
from runner.dataset import Split
from runner.dataset.colored_mnist import ColoredMnist
from runner.dataset.hub import Hub
from runner.dataset.tables import Table
from runner.engine.run import run as run_config
from runner.hook import Hooks
from runner.hook.adversarial import Adversarial
from runner.hook.smooth_adversarial import SmoothAdversarial
from tests.tiny import SMALL, compose, trainer

DIGITS = 16.0


class Linear(nn.Module):
    """Two logits (0, w.x) of flat inputs."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        z = x.flatten(1) @ self.weight
        return Output(torch.stack([torch.zeros_like(z), z], -1), x.flatten(1))


def with_hook(hook, *words):
    run = trainer(*SMALL, *words, double=True)
    run.hooks = Hooks({"mine": hook})
    return run


def raw(run, x):
    return x / run.loader.scale + run.loader.mean


def test_fgsm_of_a_logistic_regression_is_its_closed_form():
    """Section 5 of Goodfellow et al.: the worst move is epsilon * sign(w) against the label."""
    run = with_hook(Adversarial(0.1, 0.1, clean=None, bounds=(-1000, 1000)))  # so that no input is at an edge
    weight = torch.randn(64, dtype=torch.float64)
    run.forward = Linear(weight)
    batch = next(run.loader.epoch(0))
    batch.y = (batch.y > 4).long()
    moved = run.hooks.batch(run, batch)
    sign = torch.where(batch.y == 1, -1.0, 1.0)[:, None] * weight.sign()
    expected = raw(run, batch.x).flatten(1) + 0.1 * 2000 * sign
    torch.testing.assert_close(raw(run, moved.x).flatten(1), expected.double(), rtol=1e-6, atol=1e-5)
    assert torch.equal(moved.y, batch.y) and torch.equal(moved.index, batch.index) and moved.total == batch.total


@pytest.mark.parametrize("steps", [1, 4])
def test_the_moves_are_those_of_plain_pytorch(steps):
    run = with_hook(Adversarial(0.1, 0.04, steps=steps, clean=None, bounds=(0, DIGITS)))
    batch = next(run.loader.epoch(0))
    moved = raw(run, run.hooks.batch(run, batch).x)
    origin = raw(run, batch.x)
    x = origin.clone()
    for _ in range(steps):
        x.requires_grad_()
        loss = F.cross_entropy(run.model((x - run.loader.mean) * run.loader.scale).logits, batch.y)
        (gradient,) = torch.autograd.grad(loss, x)
        x = x.detach() + 0.04 * DIGITS * gradient.sign()
        x = origin + (x - origin).clamp(-0.1 * DIGITS, 0.1 * DIGITS)
        x = x.clamp(0, DIGITS)
    torch.testing.assert_close(moved, x, rtol=0, atol=1e-6)


def test_a_random_start_stays_in_the_box_and_is_keyed_by_epoch_and_sample():
    run = with_hook(Adversarial(0.2, 1e-9, random=True, clean=None, bounds=(0, DIGITS)))
    batch = next(run.loader.epoch(0))
    first = run.hooks.batch(run, batch).x
    move = (raw(run, first) - raw(run, batch.x)) / DIGITS
    assert move.abs().max() <= 0.2 + 1e-6 and raw(run, first).min() >= -1e-5 and raw(run, first).max() <= 16 + 1e-5
    inside = (raw(run, batch.x) > 4) & (raw(run, batch.x) < 12)  # no edge there: the move is uniform
    assert move[inside].std().item() == pytest.approx(0.4 / 12**0.5, rel=0.1)
    turned = run.hooks.batch(run, batch.select(torch.arange(31, -1, -1))).x
    torch.testing.assert_close(turned.flip(0), first)
    run.count = run.steps_per_epoch
    assert (run.hooks.batch(run, batch).x - first).abs().max() > 0.1


def test_the_mixture_is_that_of_the_two_risks():
    hook = Adversarial(0.1, 0.1, clean=0.3, bounds=(0, DIGITS))
    run, plain = with_hook(hook, "train.accumulate=2"), trainer(*SMALL, double=True)
    batch = next(run.loader.epoch(0))
    both = run.hooks.batch(run, batch)
    assert len(both) == 64 and both.total == 64
    value = run.gradient(both, note=False)
    parts = []
    for x in (batch.x, both.x[32:]):
        loss = F.cross_entropy(plain.model(x).logits, batch.y)
        parts.append((loss.item(), plain.weights.flatten(torch.autograd.grad(loss, plain.weights.parameters))))
    assert value.item() == pytest.approx(0.3 * parts[0][0] + 0.7 * parts[1][0], rel=1e-12)
    torch.testing.assert_close(run.weights.grad, 0.3 * parts[0][1] + 0.7 * parts[1][1], rtol=1e-9, atol=1e-12)


def test_an_attack_makes_the_loss_worse_and_leaves_the_run_alone():
    words = [*SMALL[:-1], "model=resnet20", "hook=pgd", "hook.pgd.epsilon=0.1"]
    run = trainer(*words, "hook.pgd.step=0.03", "hook.pgd.steps=3")
    state, grad = copy.deepcopy(run.model.state_dict()), run.weights.grad.clone()
    batch = next(run.loader.epoch(0))
    moved = run.hooks.batch(run, batch)
    assert all(torch.equal(value, state[name]) for name, value in run.model.state_dict().items())
    assert torch.equal(run.weights.grad, grad) and all(norm.track_running_stats for norm in run.norms)
    with torch.no_grad(), run.statistics(live=False):
        before, after = (run.loss(run.model(own.x), own).mean() for own in (batch, moved))
    assert after > before + 0.1


@pytest.mark.parametrize("option", ["fgsm", "pgd"])
def test_training_with_it_makes_a_model_harder_to_attack(option):
    own = [f"hook={option}", f"hook.{option}.epsilon=0.25", f"hook.{option}.step=0.1"]
    runs = [trainer(*SMALL, "optim.lr=0.05", "train.epochs=12", *words) for words in ([], own)]
    losses = []
    for run in runs:
        for epoch in range(12):
            for batch in run.loader.epoch(epoch):
                run.step(batch)
        batch = next(run.loader.epoch(0))
        moved = Adversarial(0.25, 0.1, steps=5, clean=None, bounds=(0, DIGITS)).batch(run, batch)
        with torch.no_grad():
            losses.append(run.loss(run.model(moved.x), moved).mean().item())
    assert losses[1] < 0.7 * losses[0]


def test_the_papers_numbers():
    pgd, fgsm = (trainer(*SMALL, f"hook={name}").hooks.named[name] for name in ("pgd", "fgsm"))
    np.testing.assert_allclose([pgd.epsilon * 255, pgd.step_size * 255, pgd.steps], [8, 2, 7], rtol=1e-12)
    assert (fgsm.epsilon, fgsm.step_size, fgsm.steps, fgsm.clean, fgsm.random) == (0.25, 0.25, 1, 0.5, False)


# ---- the range of the inputs


# By the sets' own descriptions: 17 grey levels, 8-bit pixels, and of tables none
RANGES = {
    "digits": (0, 16),
    "multi_digits": (0, 16),
    "multi_digits dataset.source=mnist": (0, 255),
    "multi_mnist": (0, 255),
    "colored_mnist": (0, 255),
    "hf dataset.id=owner/name": (0, 255),
    **dict.fromkeys(["mnist", "fashion_mnist", "svhn", "cifar10", "cifar100", "imagenet"], (0, 255)),
    "digit_masks": (0, 16),
    **dict.fromkeys(["image_folder", "torchvision_files"], (0, 255)),
    **dict.fromkeys(["table_file", "arrays"], None),
    **dict.fromkeys(["breast_cancer", "wine", "diabetes", "gaussians25", "tinyshakespeare"], None),
}
MOVES = {"fgsm": "epsilon", "pgd": "epsilon", "smooth_adversarial": "epsilon"}  # every hook that moves inputs


def made(name):
    """A data set as the command makes it, its data not yet read."""
    option, *words = name.split()
    return build(compose(f"dataset={option}", *words)["dataset"], "dataset", data_dir=None, cache_dir="unused")


@pytest.mark.parametrize("name", RANGES)
def test_every_data_set_says_what_its_range_is(name):
    assert made(name).bounds == RANGES[name]


def test_no_data_set_and_no_hook_that_asks_for_a_range_is_left_out():
    assert {name.split()[0] for name in RANGES} == set(options("dataset", [conf_dir()]))
    asking = set()
    for name in set(options("hook", [conf_dir()])) - {"none"}:
        node = compose(f"hook={name}")["hook"][name]
        if "bounds" in parameters(locate(node["_target_"], "hook"))[0]:
            asking.add(name)
    assert asking == set(MOVES)


class Coloured(ColoredMnist):
    """Colored MNIST over images that are made up."""

    def load(self):
        x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (60_000, 1, 28, 28), dtype=np.uint8))
        self.mnist = SimpleNamespace(load=lambda: (Split(x, torch.arange(60_000) % 10), None))
        return super().load()


class Parquet(Hub):
    """MNIST without its files."""

    ids = None

    def load(self):
        x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (300, 1, 8, 8), dtype=np.uint8))
        self.classes, self.shape, self.mean, self.std = 10, (1, 8, 8), torch.tensor([100.0]), torch.tensor([70.0])
        return Split(x, torch.arange(300) % 10), Split(x, torch.arange(300) % 10)


HERE = {  # one of each class of data set, with data that need no network
    "digits": [],
    "multi_digits": ["loss=asl_multilabel"],
    "colored_mnist": [f"dataset._target_={__name__}.Coloured"],
    "mnist": [f"dataset._target_={__name__}.Parquet"],
}


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("hook", MOVES)
def test_the_box_is_in_the_data_sets_units(hook, name):
    """Moves of a quarter of the range, and all values that are far enough from its ends move by as much."""
    words = [f"dataset={name}", f"hook={hook}", *HERE[name], f"hook.{hook}.epsilon=0.25", f"hook.{hook}.step=1"]
    run = trainer(*SMALL, *words)
    low, high = RANGES[name]
    batch, seen = next(run.loader.epoch(0)), []
    own, kept = run.hooks.named[hook], run.outputs
    assert raw(run, batch.x).min() >= low - 1e-3 and raw(run, batch.x).max() <= high + 1e-3
    run.outputs = lambda x: seen.append(x.detach()) or kept(x)
    if hook == "smooth_adversarial":
        own.loss(run, kept(batch.x), batch)
        moved = seen[-1]
    else:
        moved = own.batch(run, batch).x[-len(batch) :]
    there, here = raw(run, moved), raw(run, batch.x)
    move = 0.25 * (high - low)
    assert there.min() >= low - 1e-3 and there.max() <= high + 1e-3
    assert (there - here).abs().max() <= move * (1 + 1e-5)
    inside = (here > low + move) & (here < high - move)
    assert inside.sum() > 100
    far = ((there - here).abs()[inside] > 0.99 * move).float().mean()  # a gradient of exactly zero moves nothing
    assert far > 0.9


@pytest.mark.parametrize("words", [["dataset=wine"], ["dataset=breast_cancer"], ["dataset=diabetes", "loss=conr"]])
@pytest.mark.parametrize("hook", MOVES)
def test_tables_have_no_range_and_are_refused_in_one_line(hook, words):
    with pytest.raises(
        ConfigError, match=rf"^hook\.{hook}: it moves inputs by shares of their range, and this"
    ) as caught:
        trainer(f"hook={hook}", *words)
    assert "\n" not in str(caught.value)


class Unit(Table):
    """A table of numbers in [-1, 1] that says so."""

    bounds = (-1, 1)

    def load(self):
        splits = super().load()
        for split in splits:
            split.base = split.base / split.base.abs().max()
        return splits


@pytest.mark.parametrize("hook", MOVES)
def test_a_table_that_declares_a_range_is_moved_within_it(hook):
    run = trainer("dataset=wine", f"dataset._target_={__name__}.Unit", f"hook={hook}", f"hook.{hook}.epsilon=0.5")
    batch, seen, kept = next(run.loader.epoch(0)), [], run.outputs
    run.outputs = lambda x: seen.append(raw(run, x.detach())) or kept(x)
    assert torch.isfinite(run.step(batch))
    for x in seen:
        assert x.min() >= -1 - 1e-4 and x.max() <= 1 + 1e-4
    assert max((x[-len(batch) :] - raw(run, batch.x)).abs().max().item() for x in seen) > 0.01


# ---- the smooth adversarial term


def test_the_smooth_term_of_a_logistic_regression_is_its_closed_form():
    """Two logits (0, w.x): D moves by -w.(x' - x) or by its opposite, at most epsilon (high - low) |w|_1."""
    run = with_hook(SmoothAdversarial(0.7, 0.1, 0.05, steps=6, bounds=(-1000, 1000)))
    run.forward = model = Linear(torch.randn(64, dtype=torch.float64))
    batch = next(run.loader.epoch(0))
    batch.y = (batch.y > 4).long()
    term = run.hooks.losses[0](run, model(batch.x), batch)
    scale = run.loader.scale.double().flatten().expand(64)
    expected = 0.7 * 0.1 * 2000 * (model.weight * scale).abs().sum()
    torch.testing.assert_close(term, expected, rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(term, model.weight)
    torch.testing.assert_close(gradient, 0.7 * 200 * scale * model.weight.detach().sign(), rtol=1e-5, atol=0)


def test_the_smooth_terms_norm_is_that_of_the_differences():
    """No step to speak of: the start is known, and the norm is summed class by class."""
    run = with_hook(SmoothAdversarial(1.0, 0.2, 1e-9, steps=1, bounds=(0, DIGITS)))
    start = with_hook(Adversarial(0.2, 1e-9, random=True, clean=None, bounds=(0, DIGITS)))
    batch = next(run.loader.epoch(0))
    there = start.hooks.batch(start, batch).x
    with torch.no_grad():
        z, moved = (run.model(x).logits.numpy() for x in (batch.x, there))
    norms = []
    for a, b, y in zip(z, moved, batch.y.tolist(), strict=True):
        squares = [((b[y] - b[c]) - (a[y] - a[c])) ** 2 for c in range(len(a)) if c != y]
        norms.append(sum(squares) ** 0.5)
    term = run.hooks.losses[0](run, run.model(batch.x), batch)
    assert term.item() == pytest.approx(np.mean(norms), rel=1e-5)


def test_training_with_the_smooth_term_keeps_differences_of_scores_where_they_are():
    own = ["hook=smooth_adversarial", "hook.smooth_adversarial.epsilon=0.25"]
    own += ["hook.smooth_adversarial.step=0.1", "hook.smooth_adversarial.steps=3", "loss=comp_sum"]
    changes = []
    for nu in (0.0, 1.0):
        run = trainer(*SMALL, "train.epochs=6", *own, f"hook.smooth_adversarial.nu={nu}")
        for epoch in range(6):
            for batch in run.loader.epoch(epoch):
                run.step(batch)
        batch = next(run.loader.epoch(0))
        probe = SmoothAdversarial(1.0, 0.25, 0.1, 5, bounds=(0, DIGITS))
        changes.append(probe.loss(run, run.model(batch.x), batch).item())
    assert changes[1] < 0.5 * changes[0]


def test_the_smooth_term_of_no_room_is_zero_with_a_finite_gradient():
    run = with_hook(SmoothAdversarial(1.0, 0.0, 0.1, bounds=(0, DIGITS)))
    batch = next(run.loader.epoch(0))
    run.gradient(batch, note=False)
    expected = with_hook(Adversarial(bounds=(0, DIGITS)))
    expected.hooks = Hooks({})
    expected.gradient(batch, note=False)
    torch.testing.assert_close(run.weights.grad, expected.weights.grad, rtol=0, atol=1e-12)


# ---- what a run says of it


def test_a_regression_with_a_range_has_no_smooth_term():
    words = ["dataset=diabetes", "loss=conr", f"dataset._target_={__name__}.Unit", "hook=smooth_adversarial"]
    with pytest.raises(
        ConfigError, match="^hook: smooth_adversarial compares scores of classes, and this data set is a"
    ):
        trainer(*words)
    assert torch.isfinite(trainer(*words[:3], "hook=fgsm").step(next(trainer(*words[:3]).loader.epoch(0))))


def test_an_epsilon_that_the_steps_cannot_reach_is_said():
    """FGSM moves by its step, whatever the larger epsilon."""
    run, other = (trainer(*SMALL, "hook=fgsm", "hook.fgsm.step=0.1", f"hook.fgsm.epsilon={e}") for e in (0.3, 0.2))
    batch = next(run.loader.epoch(0))
    assert torch.equal(run.hooks.batch(run, batch).x, other.hooks.batch(other, batch).x)
    said = [[line for line in own.notices if "epsilon" in line] for own in (run, other)]
    assert [len(lines) for lines in said] == [1, 1] and "at most 0.1 of the range" in said[0][0]
    assert not [
        line for hook in ("fgsm", "pgd") for line in trainer(*SMALL, f"hook={hook}").notices if "epsilon" in line
    ]


def test_what_remembers_samples_beside_both_halves_is_said():
    words = ["loss=elr", "hook=[saf,fgsm]", "hook.saf.start=0", "hook.saf.lag=1"]
    (line,) = (line for line in trainer(*SMALL, *words).notices if "twice" in line)
    assert "what ELR and hook=saf remembers" in line
    quiet = trainer(*SMALL, *words, "hook.fgsm.clean=null"), trainer(*SMALL, "hook=fgsm")
    assert not [line for run in quiet for line in run.notices if "twice" in line]


@pytest.mark.slow
def test_pgd_on_digits_learns_digits(tmp_path):
    """97.5 % is what it gives where its box is in units of 0..16; in units of 0..255 it was 10 %."""
    words = ["hook=[pgd]", "device=cpu", f"outputs_dir={tmp_path}"]
    result = run_config(compose(*words), words, say=lambda *_: None)
    assert result["last"]["test_accuracy"] > 0.965
