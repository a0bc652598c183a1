"""AdaPT: fixed point, the search for a format, and the formats of a run against a plain transcription."""

import math
from itertools import islice

import numpy as np
import pytest
import torch

from runner.core.dropout import Masks
from runner.core.mistake import ConfigError
from runner.quantization import deploy
from runner.quantization.adapt import FixedPoint, divergence, fixed, lowered, raised
from tests.engine.test_replicas import advance, batches
from tests.quantization.made import DEEP, quantized
from tests.reference import quantization_adapt as plain
from tests.tiny import SMALL, trainer


def as_tensors(word, fraction):
    return torch.tensor(word), torch.tensor(fraction)


@pytest.mark.parametrize("word, fraction", [(8, 4), (4, 6), (3, 0), (12, 9)])
def test_fixed_point(word, fraction):
    w = np.concatenate([np.random.default_rng(0).normal(0, 3, 200), [0.03125, -0.03125, 9.0, -9.0]])
    for up in (0.0, 0.5, 0.999):
        found = fixed(torch.tensor(w), *as_tensors(word, fraction), up)
        np.testing.assert_array_equal(found, [plain.fixed(v, word, fraction, up) for v in w])


def test_fixed_point_by_hand():
    """<4, 2>: quarters from -2 to 1.75."""
    w = torch.tensor([-3.0, -1.9, -0.125, 0.1, 0.13, 1.7, 5.0])
    assert fixed(w, *as_tensors(4, 2), 0.5).tolist() == [-2, -2, 0, 0, 0.25, 1.75, 1.75]


def test_rounding_at_random_is_right_on_average_and_straight_through():
    """Its mean over 2000 draws is w: the deviation of one draw is at most 1/32, so of the mean 0.0007."""
    w = torch.linspace(-0.97, 1, 9, dtype=torch.float64, requires_grad=True)
    layer = FixedPoint(w, "layer", 8, 4)
    layer.masks = masks = Masks([0])
    total = 0.0
    for masks.step in range(2000):
        total = total + layer(w)[0].detach()
    assert (total / 2000 - w).abs().max() < 0.003
    value, unit = layer(w)
    up = torch.arange(9, dtype=torch.float64)
    assert torch.equal(torch.autograd.grad(value * unit, w, up)[0], up)
    masks.step += 1
    assert not torch.equal(layer(w)[0], value)
    assert torch.equal(layer.eval()(w)[0], layer(w)[0])
    assert torch.equal(layer.codes(w).decode(), layer(w)[0])


@pytest.mark.parametrize("bins", [1, 2, 5, 20])
@pytest.mark.parametrize("word, fraction", [(6, 4), (9, 6), (16, 12)])
def test_divergence_and_the_shortest_format(word, fraction, bins):
    w = np.random.default_rng(bins).normal(0, 0.4, 150)
    for shorter in range(2, fraction + 1):
        expected = plain.divergence(w.tolist(), word, shorter, bins)
        assert divergence(torch.tensor(w), word, shorter, bins) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    found = lowered(torch.tensor(w), word, fraction, bins)
    assert found == plain.lowered(w.tolist(), word, fraction, bins)


def test_the_shortest_format_by_hand():
    """Eighths up to 7/8 with a bin for each: three bits behind the point are enough, but no fewer than four are tried;
    the word then needs a sign and 14 = 0b1110 for 7/8 in sixteenths, which is five bits. One bin tells nothing but
    that all is within the range: a word of five bits, too, as the largest value must stay in it."""
    w = torch.arange(-7, 8) / 8.0
    assert lowered(w, 16, 12, 15) == (5, 4)
    assert divergence(w, 16, 2, 15) == math.inf
    assert lowered(w, 16, 12, 1) == (5, 4)


def test_steps_up_by_hand():
    """ln g - 1 = 1: ceil(1) and min(32, 32) - 4 = 28. 0.5: 4 and 8 - 4. 0.2: 25 and ceil(1.28) - 4 < 0.
    <8, 4> one up: FL 5, WL max(8, 5) + 1 = 9, and 5 + 8 = 13."""
    assert raised(8, 4, math.e**0.9, 8, "max") == raised(8, 4, math.inf, 8, "max") == (13, 5)
    assert [raised(8, 4, math.e**2, 8, by)[1] for by in ("min", "mean", "max")] == [5, 4 + 15, 24]
    assert raised(8, 4, math.e**2, 8, "max") == (32, 24)  # 4 + 28 = 32, of which 8 are before the point
    assert [raised(8, 4, math.e**1.5 * (1 + 1e-12), 8, by)[1] for by in ("min", "max")] == [8, 9]
    assert [raised(8, 4, math.e**1.2, 8, by)[1] for by in ("min", "max")] == [4, 24]
    assert raised(20, 4, 1.0, 8, "min") == (21, 5)


def test_the_formats_of_a_run():
    """Gradients of one direction, of none, and in between: l and r move, formats go up and down."""
    run = trainer(*DEEP, "quantization=adapt", "quantization.max_lookback=20", "quantization.min_lookback=4",
                  "quantization.max_resolution=6", double=True)  # fmt: skip
    hook, draw = run.hooks.named["quantization"], np.random.default_rng(0)
    layers = quantized(run.model)
    name, layer = "body.3", layers["body.3"]
    w = layer.weight.detach().flatten().tolist()
    theirs = plain.Layer(lookback=(4, 20), resolution=(1, 6))
    fixed_direction = draw.normal(size=len(w))
    formats, resolutions = set(), set()
    for t in range(240):
        share = (t // 60 % 2) or draw.uniform() * 0.3
        gradient = share * fixed_direction + (1 - share) * draw.normal(size=len(w))
        run.weights.grad.copy_(torch.randn_like(run.weights.grad))
        dict(run.weights.views(run.weights.grad))[f"{name}.weight"].copy_(torch.tensor(gradient).view(16, 16))
        hook.gradient(run), hook.step(run)
        theirs.see(w, gradient.tolist())
        seen = hook.layers[f"{name}.weight"]
        found = int(layer.quantize_w.word), int(layer.quantize_w.fraction), seen["lookback"], seen["r"]
        assert found == (theirs.word, theirs.fraction, theirs.lookback, theirs.resolution), t
        formats.add(found[:2]), resolutions.add(found[3])
    assert len(formats) > 3 and len(resolutions) > 3


def test_gradients_have_norm_one_and_the_penalty_comes_after():
    words = [*DEEP, "quantization=adapt", "quantization.l1=0.01", "quantization.ends=float"]
    run, free = (trainer(*words, f"quantization.normalize={flag}", double=True) for flag in ("true", "false"))
    batch = next(run.loader.epoch(0))
    for one in (run, free):
        one.gradient(batch)
    raw = run.weights.grad.clone()
    for one in (run, free):
        one.hooks.gradient(one)
    views = (dict(run.weights.views(v)) for v in (run.weights.grad, free.weights.grad, raw))
    parameters = dict(run.weights.views(run.weights.data))
    normed, penalised, raw = views
    for name in raw:
        sign = parameters[name].sign() * 0.01 if name == "body.3.weight" else 0
        torch.testing.assert_close(normed[name], raw[name] / raw[name].norm() + sign, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(penalised[name], raw[name] + sign, rtol=1e-12, atol=1e-14)


def test_a_run_changes_its_formats_and_learns():
    run = trainer(*SMALL, "quantization=adapt", "train.epochs=12", "train.batch_size=20", "optim.lr=0.1")
    first = run.evaluate(run.dataset.test)["accuracy"]
    advance(run, run.steps)
    formats = {(int(layer.quantize_w.word), int(layer.quantize_w.fraction)) for layer in quantized(run.model).values()}
    assert all(word > 8 for word, _ in formats)
    assert run.evaluate(run.dataset.test)["accuracy"] > first + 0.3


def test_formats_that_change_between_epochs_alone():
    """Eight steps of an epoch, and the lookback never leaves them."""
    words = ["train.batch_size=28", "quantization.min_lookback=8", "quantization.max_lookback=8"]
    run = trainer(*SMALL, "quantization=adapt", *words, "dataset.val=0")
    assert run.steps_per_epoch == 8  # 200 / 28, rounded up
    layer, found = next(iter(quantized(run.model).values())), []
    for batch in islice(batches(run), 32):
        run.step(batch)
        found.append((int(layer.quantize_w.word), int(layer.quantize_w.fraction)))
    changes = [step + 1 for step in range(1, 32) if found[step] != found[step - 1]]
    assert changes and all(step % 8 == 0 for step in changes)


def test_settings_that_contradict_each_other():
    for words, message in (
        (["quantization.fraction=8"], "below word=8"),
        (["quantization.max_lookback=5"], "lookback"),
    ):
        with pytest.raises(ConfigError, match=message):
            trainer(*SMALL, "quantization=adapt", *words)


@pytest.mark.parametrize("word, fraction", [(9, 4), (25, 20), (32, 24), (32, 30)])
def test_long_words_are_stored_and_read_back(word, fraction):
    """More bits than a float of 32 bits has: the integers are exact, and so is the weight."""
    words = [f"quantization.word={word}", f"quantization.fraction={fraction}"]
    run = trainer(*SMALL, "quantization=adapt", *words)
    for layer in quantized(run.model).values():
        content, codes = deploy.Content(), layer.codes()
        back = deploy._get_codes(content, deploy._put_codes(content, codes))
        used = layer.quantize_w.eval()(layer.weight)[0].detach()
        levels, step = deploy.Stored(back)(None)
        assert torch.equal(back.values, codes.values.to(back.values.dtype)) and used.any()
        for found in (codes.decode(), back.decode(), levels * step):
            assert torch.equal(found, used)
