"""Estimated gradients: unbiased, put together as any, and refused where they cannot be."""

import copy

import numpy as np
import pytest
import torch

from runner.core.batch import Batch
from runner.core.mistake import ConfigError
from runner.gradient import Gradient
from tests.tiny import trainer

TINY = ["dataset.subset=60", "train.batch_size=20", "model.hidden=[3]", "optim.lr=0.01", "augment=none"]
FORWARD = [*TINY, "gradient=forward"]


def first(run) -> Batch:
    return next(iter(run.loader.epoch(0)))


def gradients(run, batch, passes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(passes, P) of as many steps of the same batch from the same weights, and the loss."""
    found = []
    for step in range(passes):
        run.masks.step = step
        loss = run.gradient(batch)
        found.append(run.weights.grad.clone())
    return torch.stack(found), loss


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["train.accumulate=3"],
        ["loss=ldam", "hook=spectral_decoupling", "risk=top_k"],
        ["model=cnn", "model.widths=[2,2]", "model.hidden=3"],
        ["gradient.samples=4"],
    ],
    ids=str,
)
def test_its_mean_is_the_gradient(words):
    words = [word for word in FORWARD if "model" not in word or "model=cnn" not in words] + words
    run, exact = trainer(*words, double=True), trainer(*(w for w in words if not w.startswith("gradient")), double=True)
    batch = first(run)
    found, loss = gradients(run, batch, 400)
    expected, plain = gradients(exact, batch, 1)
    torch.testing.assert_close(loss, plain)
    error = (found.mean(0) - expected[0]) * len(found) ** 0.5 / found.std(0).clamp(min=1e-30)
    error = error[found.std(0) > 0]
    assert error.abs().max() < 5 and 0.7 < error.std() < 1.3  # in standard errors: as large as chance makes them


def test_it_is_the_slope_times_the_direction():
    run, exact = trainer(*FORWARD, double=True), trainer(*TINY, double=True)
    batch = first(run)
    (grad,), _ = gradients(exact, batch, 1)
    (g,), _ = gradients(run, batch, 1)
    generator = torch.Generator().manual_seed(int(_keyed(run).integers(2**62)))
    v = torch.randn(g.shape, generator=generator, dtype=g.dtype)
    v = run.weights.flatten(view for _, view in run.weights.views(v))
    torch.testing.assert_close(g, (grad @ v) * v, rtol=1e-9, atol=1e-12)


def _keyed(run) -> np.random.Generator:
    from runner.core import keyed

    return keyed.generator(run.masks.seeds[0], "gradient", 0, 0)


def test_micro_batches_add_up_and_passes_differ():
    whole, parts = trainer(*FORWARD, double=True), trainer(*FORWARD, "train.accumulate=4", double=True)
    batch = first(whole)
    torch.testing.assert_close(gradients(whole, batch, 2)[0], gradients(parts, batch, 2)[0])
    found, _ = gradients(whole, batch, 2)
    assert not torch.allclose(*found)


@pytest.mark.parametrize(
    "words",
    [
        ["optim=sam"],
        ["sharpness=sam", "sharpness.m=5", "optim=adamw", "hook=[clip,ema]"],
        ["model=resnet20", "model.depth=8", "train.precision=bf16"],
        ["model=wrn_16_8", "model.depth=10", "model.widen=1", "model.dropout=0.3"],
        ["train.precision=fp16", "groups=no_decay"],
        ["train.precision=bf16", "transform=lora", "model=cnn", "model.widths=[2,2]", "model.hidden=3", "hook=mesa"],
        ["loss=elr", "train.accumulate=2", "gradient.samples=2"],
        ["model=timm", "model.name=test_vit", "+model.args.patch_size=4", "dataset.subset=20", "train.batch_size=10"],
    ],
    ids=str,
)
def test_a_run_goes_on_from_a_checkpoint_bit_for_bit(words):
    words = [word for word in FORWARD if "model" not in word or not any("model=" in w for w in words)] + words
    run, again = trainer(*words), trainer(*words)
    if run.precision.scale:
        run.precision.scale.value = again.precision.scale.value = 4.0
    batches = list(run.loader.epoch(0))[:2]
    statistics = [name for name, _ in run.model.named_buffers() if name.endswith("num_batches_tracked")]
    before = run.weights.clone()
    run.step(batches[0])
    assert not torch.equal(before, run.weights.data) and torch.isfinite(run.weights.data).all()
    assert all(dict(run.model.named_buffers())[name] == 1 for name in statistics)
    again.load_state_dict(copy.deepcopy(run.state_dict()))
    run.step(batches[1]), again.step(batches[1])
    assert torch.equal(run.weights.data, again.weights.data)


def test_an_overflow_changes_nothing():
    run = trainer(*FORWARD, "train.precision=fp16")
    run.precision.scale.value = float("inf")
    before = run.weights.clone()
    assert run.step(first(run)) is None
    assert torch.equal(before, run.weights.data)


@pytest.mark.parametrize(
    "words, why",
    [
        (["quantization=lsq"], "gradient=forward: something here has no forward-mode derivative"),
        (
            ["model=resnet20", "model.depth=8", "transform=groupnorm", "hook=smooth_adversarial"],
            "gradient=forward: something here has no forward-mode derivative",
        ),
        (["train.compile=true"], "gradient=forward cannot look into a compiled model"),
        (["balance=upgrad", "balance.of=terms", "hook=spectral_decoupling"], "balance=upgrad one of each objective"),
    ],
    ids=str,
)
def test_what_cannot_be_is_one_line(words, why):
    own = [word for word in FORWARD if "model" not in word or not any("model=" in w for w in words)]
    with pytest.raises(ConfigError, match=why):
        trainer(*own, *words)


class Random(Gradient):
    """No gradient at all: a direction, twice the same objective for it."""

    def estimate(self, run, objective, draw):
        (loss, out), (other, _) = objective(), objective()
        assert torch.equal(loss, other)
        return loss.detach(), out.detach(), torch.full_like(run.weights.data, draw.normal())


def test_an_objective_may_be_asked_for_several_times_and_is_one_function():
    words = ["dataset.subset=60", "train.batch_size=20", "model=wrn_16_8", "model.depth=10", "model.widen=1"]
    run = trainer(*words, "model.dropout=0.5", "gradient._target_=tests.gradient.test_gradient.Random")
    run.step(first(run))
    assert {int(b) for name, b in run.model.named_buffers() if name.endswith("num_batches_tracked")} == {1}
