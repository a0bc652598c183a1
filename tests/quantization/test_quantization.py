"""The contract of the quantization seam over every option, and each method against its formula."""

import itertools
from importlib import import_module

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from runner.command.build import build
from runner.command.listing import conf_dir, options
from runner.core.batch import Batch, Output
from runner.core.mistake import ConfigError
from runner.engine.assemble import calibration_batch
from runner.model.mlp import Mlp
from runner.model.resnet import ResNet
from runner.model.timm import Timm
from runner.quantization import deploy
from runner.quantization.fake import Float
from runner.quantization.fold import fold
from runner.quantization.lsq import LSQ
from runner.quantization.quantizer import Quantizer
from runner.quantization.self_compression import SelfCompression
from scripts import packing
from tests.engine.test_replicas import advance, assert_pack_equals_alone, doubled
from tests.test_compose import assert_resumed_equals_whole
from tests.tiny import SMALL, trainer

AFTER = ("ptq", "adaround", "adaquant")  # training: tests/quantization/test_post_training.py
NAMES = [name for name in options("quantization", [conf_dir()]) if name not in ("none", *AFTER)]
DEEP = [*SMALL[:-1], "model.hidden=[16,16]"]  # so that something lies between the first and the last layer


def reference(name):
    return import_module(f"tests.reference.quantization_{name}")


def option(name: str, **settings):
    node = yaml.safe_load((conf_dir() / "quantization" / f"{name}.yaml").read_text())
    return build(node | settings, "quantization")


def a_batch(*shape: int, size: int = 16) -> Batch:
    return Batch(torch.randn(size, *shape), torch.randint(0, 4, (size,)), torch.arange(size))


def rounded(quantizer, x):
    """x on the quantizer's grid."""
    levels, step = quantizer(x)
    return levels * step


def quantized(model: nn.Module) -> dict:
    """Its quantized layers by name."""
    return {name: layer for name, layer in model.named_modules() if hasattr(layer, "codes") and hasattr(layer, "bias")}


# ---- every option


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("loss", ["ce", "poly"])
@pytest.mark.parametrize("optim", ["sgd", "adamw", "sam"])
def test_two_steps_change_every_tensor_and_stay_finite(name, optim, loss):
    run = trainer(*DEEP, f"quantization={name}", f"optim={optim}", f"loss={loss}")
    assert quantized(run.model)
    before = run.weights.clone()
    advance(run, 2)
    assert torch.isfinite(run.weights.data).all()
    for parameter, a, b in zip(run.weights.names, run.weights.views(before), run.weights.views(run.weights.data)):
        assert not torch.equal(a[1], b[1]), parameter


@pytest.mark.parametrize("name", NAMES)
def test_a_deployed_weight_is_the_one_that_was_trained_with(name):
    """Integers, scale and zero point give what the layer multiplies with; no more levels than the bits have."""
    run = trainer(*DEEP, f"quantization={name}")
    advance(run, run.steps)
    run.model.eval()
    for layer in quantized(run.model).values():
        codes = layer.codes()
        if name != "littlebit":
            assert codes.values.dtype == torch.uint8 or codes.bits > 8
            assert int(codes.values.max()) < 2**codes.bits
            assert len(codes.values.unique()) > 1
        bias = 0 if layer.bias is None else layer.bias
        with torch.no_grad():  # linear layers: the weight is what they make of the unit vectors
            layer.quantize_x = Float()
            used = (layer(torch.eye(layer.in_features)) - bias).T
        torch.testing.assert_close(codes.decode(), used, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model", ["cnn", "resnet20"])
def test_convolutions_are_packed_as_they_are_alone(name, model):
    """Perceptrons are packed in tests/engine/test_replicas.py. Of ResNet-20 two steps: in a third one BiPer, with
    gradients of 50, amplifies the rounding of the first to 5e-10."""
    small = ["model.widths=[4,6]", "model.hidden=16"] if model == "cnn" else []
    common = ["train.batch_size=8", "train.epochs=8", "device=cpu", f"model={model}", *small, f"quantization={name}"]
    cells = [[*common, "seed=0"], [*common, "seed=1", "optim.lr=0.003", *packing.numbers("quantization", name)]]
    assert_pack_equals_alone(doubled, cells, steps=20 if model == "cnn" else 2)


@pytest.mark.parametrize("name", NAMES)
def test_resume_in_the_middle_with_sam_and_an_average(name, tmp_path):
    words = ["dataset.subset=32", "model.hidden=[16,16]", f"quantization={name}", "optim=sam", "hook=[ema,clip]"]
    assert_resumed_equals_whole(words, 6, tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_bf16_and_fp16(name):
    for precision in ("bf16", "fp16"):
        run = trainer(*DEEP, f"quantization={name}", f"train.precision={precision}")
        if run.precision.scale:
            run.precision.scale.value = 2.0**8
        advance(run, 2)
        assert torch.isfinite(run.weights.data).all()


# ---- the uniform quantizer


POINTS = np.array([-1.3, -0.9, -0.75, -0.31, -0.06, 0.0, 0.02, 0.15, 0.4, 0.62, 0.81, 2.5])
UPSTREAM = np.array([0.5, -1.0, 2.0, 0.3, -0.7, 1.1, 0.9, -2.0, 1.5, 0.25, -0.6, 0.8])


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_value_and_gradients_are_lsqs(bits, signed):
    lsq, s = reference("lsq"), 0.25
    x = torch.tensor(POINTS, requires_grad=True)
    made = Quantizer(x, bits, signed=signed, weight=True)
    assert made.scale.item() == pytest.approx(lsq.first_step(POINTS, bits, signed), rel=1e-14)
    with torch.no_grad():
        made.scale.fill_(s)
    y = rounded(made, x)
    found = torch.autograd.grad(y, (x, made.scale), torch.tensor(UPSTREAM))
    points = [lsq.quantize(v, s, bits, signed) for v in POINTS]
    np.testing.assert_allclose(y.detach(), [value for value, _, _ in points], rtol=1e-15)
    np.testing.assert_allclose(found[0], UPSTREAM * [slope for _, slope, _ in points], rtol=1e-15)
    expected = lsq.gradient_of_step(POINTS, UPSTREAM, s, bits, signed, len(POINTS))
    assert found[1].item() == pytest.approx(expected, rel=1e-12)


def test_gradient_of_the_step_by_hand():
    """Two bits, signed: Q_N = 2, Q_P = 1. v / s = -3, -0.6, 0.2, 1.4 have d v^ / d s = -2, -1 + 0.6, 0 - 0.2, 1;
    with gradients 1, 2, 3, 4 that is -2 - 0.8 - 0.6 + 4 = 0.6, times 1 / sqrt(4 * 1)."""
    x = torch.tensor([-1.5, -0.3, 0.1, 0.7], dtype=torch.float64)
    made = Quantizer(x, 2, weight=True)
    with torch.no_grad():
        made.scale.fill_(0.5)
    (found,) = torch.autograd.grad(rounded(made, x), made.scale, torch.tensor([1.0, 2, 3, 4], dtype=torch.float64))
    assert found.item() == pytest.approx(0.3, rel=1e-12)


def test_the_gradient_scale_counts_one_sample_of_inputs_and_one_channel_of_weights():
    lsq = reference("lsq")
    x = torch.randn(6, 4, 3, dtype=torch.float64)
    inputs, rows = Quantizer(x, 4, signed=False), Quantizer(x, 4, channels=True, weight=True)
    up = torch.randn_like(x)
    (found,) = torch.autograd.grad(rounded(inputs, x), inputs.scale, up)
    flat = x.flatten().tolist(), up.flatten().tolist()
    assert found.item() == pytest.approx(
        lsq.gradient_of_step(*flat, inputs.scale.item(), 4, False, elements=12), rel=1e-10
    )
    (found,) = torch.autograd.grad(rounded(rows, x), rows.scale, up)
    assert found.shape == (6, 1, 1)
    for k in range(6):
        assert rows.scale[k].item() == pytest.approx(lsq.first_step(x[k].numpy(), 4, True), rel=1e-12)
        expected = lsq.gradient_of_step(
            x[k].flatten().tolist(), up[k].flatten().tolist(), rows.scale[k].item(), 4, True, elements=12
        )
        assert found[k].item() == pytest.approx(expected, rel=1e-10)


GRIDS = [
    (bits, signed, affine, channels, learned, how)
    for bits, signed, affine, channels, learned, how in itertools.product(
        [1, 2, 3, 8], [True, False], [True, False], [True, False], [True, False], ["lsq", "minmax", "percentile", "mse"]
    )
    if not affine or (bits > 1 and how != "lsq")
]


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_idempotent_and_no_more_levels_than_bits(bits):
    x = torch.randn(5, 400) + 0.3
    for chosen, signed, affine, channels, learned, how in GRIDS:
        if chosen != bits:
            continue
        data = x if signed or affine else x.abs()
        grid = {"signed": signed, "affine": affine, "channels": channels, "learned": learned, "range": how}
        made = Quantizer(data, bits, weight=True, **grid).eval()
        y = rounded(made, data).detach()
        assert torch.equal(rounded(made, y), y), grid
        for part in y if channels else [y]:
            assert 2 <= len(part.unique()) <= 2**bits, grid
        codes = made.codes(data)
        assert int(codes.values.max()) < 2**bits
        torch.testing.assert_close(codes.decode(), y)
        assert (
            bits == 1 and signed or not rounded(made, torch.zeros(5, 1)).any()
        )  # zero is a level: zero padding is exact


def test_every_level_is_used():
    """Signed grids have one more level below zero than above, of which data as wide on either side leave one unused."""
    x = torch.linspace(-1, 1, 4001)
    for bits in range(1, 9):
        for data, signed, affine, levels in (
            (x, True, False, 2**bits - 1 if bits > 1 else 2),
            (x.abs(), False, False, 2**bits),
            (1.5 * x + 0.5, True, True, 2**bits if bits > 1 else None),
        ):
            if levels:
                made = Quantizer(data, bits, signed=signed, affine=affine, range="minmax", weight=True)
                assert len(rounded(made, data).unique()) == levels, (bits, signed, affine)


def test_ranges_by_hand():
    """1 to 1000, each once: the largest, the 0.5 % quantile from above, and what numpy finds with the least error."""
    x = torch.arange(1.0, 1001.0, dtype=torch.float64)
    assert Quantizer(x, 3, signed=False, range="minmax", weight=True).scale.item() == pytest.approx(1000 / 7)
    cut = Quantizer(x, 3, signed=False, range="percentile", percentile=99.5, weight=True)
    assert cut.scale.item() == pytest.approx(995 / 7)
    heavy = torch.cat([torch.randn(2000, dtype=torch.float64), torch.tensor([9.0], dtype=torch.float64)])
    made = Quantizer(heavy, 3, range="mse", weight=True)
    values, top = heavy.numpy(), max(9 / 3, -heavy.min().item() / 4)
    errors = {}
    for part in np.arange(1, 101) / 100:
        s = top * part
        errors[s] = np.mean((np.clip(np.round(values / s), -4, 3) * s - values) ** 2)
    assert made.scale.item() == pytest.approx(min(errors, key=errors.get), rel=1e-12)
    assert made.scale.item() < 0.7 * top
    # rows of their own, with a zero point: levels -zero to 15 - zero
    rows = torch.stack([heavy, 3 - heavy.abs(), heavy * heavy]).float()
    made = Quantizer(rows, 4, affine=True, channels=True, range="mse", weight=True)
    for values, scale, low in zip(rows.double().numpy(), made.scale.flatten(), made.low.flatten(), strict=True):
        errors = {}
        for part in np.arange(1, 101) / 100:
            bottom, top = part * min(values.min(), 0), part * max(values.max(), 0)
            s = (top - bottom) / 15
            zero = np.round(-bottom / s)
            errors[s, -zero] = np.mean((np.clip(np.round(values / s), -zero, 15 - zero) * s - values) ** 2)
        assert (scale.item(), low.item()) == pytest.approx(min(errors, key=errors.get), rel=1e-5)
    affine = Quantizer(torch.tensor([-1.0, 0.5, 2.0]), 2, affine=True, range="minmax", weight=True)
    assert affine.scale.item() == 1  # levels -1, 0, 1, 2
    assert rounded(affine, torch.tensor([-3.0, -0.4, 1.4, 9.0])).tolist() == [-1, 0, 1, 2]


def test_observed_weights_follow_at_once_and_inputs_slowly():
    x = torch.tensor([[-1.0, 3.5]])
    weights, inputs = (Quantizer(x, 3, range="minmax", learned=False, weight=w) for w in (True, False))
    for made, expected in ((weights, 7.0), (inputs, 3.5 + 0.1 * 3.5)):
        made(2 * x)
        assert made.top.item() == pytest.approx(expected)
        made.track_running_stats = False  # the second pass of SAM
        made(9 * x)
        made.track_running_stats = True
        made.eval()(9 * x)
        assert made.top.item() == pytest.approx(expected)


def test_the_gradient_can_be_differentiated_again():
    """As sharpness methods with second-order terms need it. d/ds of sum x^ ** 2 is 2 x^ (q - v) for inner points.
    Straight through the rounding q has the slope of v, so that the second derivative is 2 (q - v) ** 2: with v = 0.75
    and -1.75, 0.125 each. The clipped point has 2 * 3 * 3 = 18."""
    x = torch.tensor([0.3, -0.7, 1.9], dtype=torch.float64)
    scale = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    made = Quantizer(x, 3, weight=True)
    del made.scale
    made.scale, made.g = scale, torch.tensor(1.0, dtype=torch.float64)
    value = rounded(made, x).square().sum()
    (slope,) = torch.autograd.grad(value, scale, create_graph=True)
    (second,) = torch.autograd.grad(slope, scale)
    assert second.item() == pytest.approx(0.125 + 0.125 + 18, rel=1e-12)


# ---- DoReFa, ReSTE, BiPer


def grads(layer, x, upstream):
    """Values on the layer's grid and the gradients of sum upstream * value by x and the layer's parameters."""
    x = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    y = rounded(layer, x)
    return y.detach(), *torch.autograd.grad(y, (x, *layer.parameters()), torch.tensor(upstream, dtype=torch.float64))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_dorefa(bits):
    plain, dorefa = reference("dorefa"), import_module("runner.quantization.dorefa")
    w = POINTS + 0.01  # no zero, whose sign is a convention
    found = grads(dorefa.Weights(bits), w, UPSTREAM)
    for mine, expected in zip(found, plain.weights(w, UPSTREAM, bits), strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-12, atol=1e-14)
    found = grads(dorefa.Inputs(bits, signed=False), w, UPSTREAM)
    for mine, expected in zip(found, plain.inputs(w, UPSTREAM, bits), strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-12, atol=1e-14)


def test_dorefas_signed_inputs_have_zero_and_both_signs():
    """Three bits: multiples of 1/3. One bit: the sign."""
    dorefa = import_module("runner.quantization.dorefa")
    x = torch.tensor([-2.0, -0.7, -0.1, 0.0, 0.2, 0.9])
    torch.testing.assert_close(rounded(dorefa.Inputs(3, signed=True), x) * 3, torch.tensor([-3.0, -2, 0, 0, 1, 3]))
    assert rounded(dorefa.Inputs(1, signed=True), x).tolist() == [-1, -1, -1, 1, 1, 1]


@pytest.mark.parametrize("o", [1.0, 1.7, 3.0])
def test_reste(o):
    plain, reste = reference("reste"), import_module("runner.quantization.reste")
    w = POINTS + 0.01
    layer = reste.Weights(torch.tensor(w), 1.5)
    layer.o.fill_(o)
    for mine, expected in zip(grads(layer, w, UPSTREAM), plain.weights(w, UPSTREAM, o), strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-12, atol=1e-14)
    layer = reste.Inputs(torch.tensor(w), 1.5)
    layer.o.fill_(o)
    value, slope = grads(layer, w, UPSTREAM)
    np.testing.assert_array_equal(value, np.sign(w))
    np.testing.assert_allclose(slope, [u * plain.slope(v, o) for u, v in zip(UPSTREAM, w, strict=True)], rtol=1e-12)
    assert rounded(reste.Inputs(layer.o, 1.5, signed=False), torch.tensor([0.0, 0.3])).tolist() == [0, 1]


def test_restes_power_rises_by_the_epoch():
    run = trainer(*DEEP[:-2], "train.epochs=4", DEEP[-1], "quantization=reste")
    layer = run.model.body[3].quantize_w
    for epoch in range(4):
        for batch in run.loader.epoch(epoch):
            run.step(batch)
            assert layer.o.item() == pytest.approx(reference("reste").power(epoch, 4, 3.0), rel=1e-6)


@pytest.mark.parametrize("stage", [1, 2])
def test_biper(stage):
    plain, biper = reference("biper"), import_module("runner.quantization.biper")
    w = np.stack([POINTS + 0.01, 0.3 * POINTS - 0.02])
    up = np.stack([UPSTREAM, UPSTREAM[::-1]])
    layer = biper.Weights(torch.tensor(w), 20.0)
    assert layer.alpha.min() >= 0 and layer.alpha.max() < 1
    layer.stage.fill_(stage)
    value, by_w, by_alpha = grads(layer, w, up)
    for row in range(2):
        expected = plain.weights(w[row], up[row], layer.alpha[row].item(), 20.0, stage)
        for mine, theirs in zip((value[row], by_w[row], by_alpha[row].item()), expected, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-10, atol=1e-12)
    value, slope = grads(biper.Inputs(signed=True), w, up)
    for row in range(2):
        expected = plain.inputs(w[row], up[row])
        np.testing.assert_array_equal(value[row], expected[0])
        np.testing.assert_allclose(slope[row], expected[1], rtol=1e-10, atol=1e-12)


def test_bipers_stages_and_penalty():
    run = trainer(*DEEP, "quantization=biper", "quantization.penalty=0.3", "quantization.ends=same", double=True)
    layers = list(quantized(run.model).values())
    assert len(layers) == 3
    batch = next(run.loader.epoch(0))
    out = run.model(batch.x)
    plain = run.risk(run.loss(out, batch), batch)
    weights = [layer.weight.detach().flatten().tolist() for layer in layers]
    expected = reference("biper").penalty(weights, 0.3, 30.0)
    assert (run.objective(batch)[0] - plain).item() == pytest.approx(expected, rel=1e-10)
    for count in range(run.steps):
        assert {layer.quantize_w.stage.item() for layer in layers} == {2 if count >= run.steps * 2 / 3 else 1}
        run.step(batch)


# ---- GAQAT


def test_gaqat_gives_a_step_size_both_gradients_and_all_else_sams():
    run, sam = (trainer(*SMALL, f"quantization={name}", "optim=sam", double=True) for name in ("gaqat", "lsq"))
    batch = next(run.loader.epoch(0))
    sam.gradient(batch)
    smooth = sam.weights.grad.clone()
    sam.sharpness = type(trainer(*SMALL).sharpness)()
    sam.gradient(batch)
    task = sam.weights.grad.clone()
    run.gradient(batch)
    run.hooks.gradient(run)
    views = zip(run.weights.names, *(dict(run.weights.views(v)).values() for v in (run.weights.grad, task, smooth)))
    for name, found, of_task, of_smooth in views:
        expected = of_task + of_smooth if name.endswith("scale") else of_smooth
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15, msg=name)
    assert len(run.hooks.named["quantization"].index) == 4


def test_gaqat_freezes_and_releases_by_the_signs_of_the_task_gradient():
    run = trainer(*SMALL, "quantization=gaqat", "optim=sam", "quantization.period=4", "quantization.threshold=0.4")
    hook, draw = run.hooks.named["quantization"], np.random.default_rng(0)
    task, smooth = draw.normal(size=(2, 40, 4))
    task[:20, 0], task[12:, 1], task[:, 2] = abs(task[:20, 0]), -abs(task[12:, 1]), abs(task[:, 2])
    expected = [reference("gaqat").gradients(task[:, k], smooth[:, k], 4, 0.4) for k in range(4)]
    only_smooth = 0
    for t in range(40):
        for vector, values in ((run.weights.grad, smooth[t]), (torch.zeros_like(run.weights.grad), task[t])):
            vector.scatter_(-1, hook.index, torch.tensor(values, dtype=vector.dtype))
            run.sharpness.task = vector
        hook.gradient(run)
        found = run.weights.grad[hook.index]
        np.testing.assert_allclose(found, [expected[k][t] for k in range(4)], rtol=1e-5, atol=1e-6)
        only_smooth += np.isclose(found, smooth[t]).sum()
    assert 40 < only_smooth < 120


def test_gaqat_with_one_pass_is_lsq_and_with_m_is_refused():
    runs = [trainer(*SMALL, f"quantization={name}") for name in ("gaqat", "lsq")]
    for run in runs:
        advance(run, 3)
    assert torch.equal(*(run.weights.data for run in runs))
    with pytest.raises(ConfigError, match="sharpness.m=null"):
        trainer(*SMALL, "quantization=gaqat", "optim=sam", "sharpness.m=8")


@pytest.mark.parametrize("optim", ["sgd", "sam"])
def test_gaqat_is_packed_as_alone(optim):
    common = ["train.batch_size=8", "train.epochs=8", "device=cpu", "model.hidden=[16,16]", "quantization=gaqat"]
    common += ["quantization.period=3", f"optim={optim}"]
    cells = [[*common, "seed=0"], [*common, "seed=1", "quantization.threshold=0.6"]]
    assert_pack_equals_alone(doubled, cells)


# ---- self-compression


@pytest.mark.parametrize("bits", [0.0, 0.7, 2.0, 3.4])
def test_self_compression(bits):
    plain, compression = reference("self_compression"), import_module("runner.quantization.self_compression")
    w, up = np.stack([POINTS + 0.01, 0.3 * POINTS - 0.02]), np.stack([UPSTREAM, UPSTREAM[::-1]])
    layer = compression.Weights(torch.tensor(w), 8.0, -2.0)
    with torch.no_grad():
        layer.bits.fill_(bits), layer.shift.copy_(torch.tensor([[0.3], [-0.4]]))
    value, by_w, by_shift, by_bits = grads(layer, w, up)
    for row, exponent in enumerate((-1.7, -2.4)):
        found = value[row], by_w[row], by_bits[row].item(), by_shift[row].item()
        expected = plain.weights(w[row], up[row], bits, layer.start[row].item() + layer.shift[row].item())
        assert layer.start[row].item() + layer.shift[row].item() == pytest.approx(exponent, rel=1e-6)
        for mine, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-10, atol=1e-12)
    if bits == 0:
        assert not value.any()


def test_self_compression_starts_close_to_the_model_and_counts_bits():
    """64 x 16 weights of 3 bits and 16 x 10 of 6: (1024 * 3 + 160 * 6) / 1184."""
    words = [*SMALL, "quantization=self_compression", "quantization.gamma=0.2"]
    run, plain = trainer(*words, double=True), trainer(*SMALL, double=True)
    batch = next(run.loader.epoch(0))
    assert (run.model(batch.x).logits - plain.model(batch.x).logits).abs().max() < 0.05
    for layer, bits in zip(quantized(run.model).values(), (3.0, 6.0), strict=True):
        with torch.no_grad():
            layer.quantize_w.bits.fill_(bits)
    penalty = run.objective(batch)[0] - run.risk(run.loss(run.model(batch.x), batch), batch)
    assert penalty.item() == pytest.approx(0.2 * (1024 * 3 + 160 * 6) / 1184, rel=1e-10)


def test_self_compression_compresses():
    """The penalty alone takes a channel's bits to zero, and not below where anything could come of it."""
    run = trainer(*SMALL, "quantization=self_compression", "quantization.gamma=1000", "quantization.bits=2")
    advance(run, 20)
    layer = quantized(run.model)["body.1"]
    assert layer.quantize_w.bits.max() <= 0
    assert not rounded(layer.quantize_w, layer.weight).any()


@pytest.mark.parametrize("model", ["cnn", "mlp", "resnet20"])
def test_channels_without_bits_are_removed_for_real(model):
    run = trainer(*SMALL[:-1], f"model={model}", "quantization=self_compression", double=True)
    layers = quantized(run.model)
    with torch.no_grad():
        for layer in layers.values():
            layer.quantize_w.bits[1::3] = -0.1
    x = next(run.loader.epoch(0)).x
    removed = SelfCompression().convert(run.model.eval(), None)
    torch.testing.assert_close(removed(x).logits, run.model(x).logits, rtol=0, atol=1e-10)
    for name, layer in layers.items():
        kept = removed.get_submodule(name).layer.weight
        assert len(kept) == len(layer.weight) - len(layer.weight[1::3])
        assert kept.shape[1:] == layer.weight.shape[1:]


def test_what_is_stored_has_all_quantized_layers_where_not_all_of_them_can_be_made_smaller():
    """Channels of a grouped convolution are not removed, so that it alone is quantized in the smaller network."""

    class Grouped(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide = nn.Conv2d(4, 4, 3, groups=2)
            self.head = nn.Linear(16, 3)

        def forward(self, x):
            out = self.wide(x).flatten(1)
            return Output(self.head(out), out)

    x = torch.randn(8, 4, 4, 4)
    batch = Batch(x, torch.zeros(8, dtype=torch.int64), torch.arange(8))
    compression = SelfCompression()
    model = compression.prepare(Grouped(), batch)
    smaller = compression.convert(model.eval(), batch)
    assert list(deploy.layers(smaller)) == ["wide"]
    kept = deploy.stored(model, smaller)
    assert list(deploy.layers(kept)) == ["wide", "head"]
    torch.testing.assert_close(deploy.decode(deploy.encode(kept)[0], kept)(x).logits, model(x).logits)


# ---- LittleBit


@pytest.mark.parametrize("residual", [False, True])
def test_littlebit_starts_as_dual_svid_and_computes_in_the_papers_order(residual):
    plain, littlebit = reference("littlebit"), import_module("runner.quantization.littlebit")
    layer = nn.Linear(40, 24).double()
    w, bias = layer.weight.detach().numpy().copy(), layer.bias.detach().numpy()
    littlebit.LittleBit(bits=0.3, residual=residual).replace(layer)
    parts = plain.start(w, 8, residual)
    for mine, (u, v, u1, u2, v1, v2) in zip(layer.factors, parts, strict=True):
        np.testing.assert_allclose((mine.U @ mine.V).detach(), u @ v, rtol=0, atol=1e-10)
        for found, theirs in ((mine.u1, u1), (mine.u2, u2), (mine.v1, v1), (mine.v2, v2)):
            np.testing.assert_allclose(found.detach(), theirs, rtol=1e-8)
    x = np.random.default_rng(0).normal(size=(5, 40))
    expected = np.stack([plain.forward(row, parts) for row in x]) + bias
    np.testing.assert_allclose(layer(torch.tensor(x)).detach(), expected, rtol=0, atol=1e-10)
    error = np.linalg.norm(layer.codes().decode().numpy() - w) / np.linalg.norm(w)
    assert 0.3 < error < 0.95


def test_littlebit_ranks_by_hand():
    """4096 x 4096 at 1 bit: (16777216 - 131072) / 8208 = 2028.02, and with a residual (16777216 - 262144) / 16416 =
    1006.04; 64 x 10 at 1 bit: below 8, so 8."""
    littlebit = import_module("runner.quantization.littlebit").LittleBit
    assert littlebit(residual=False).rank(4096, 4096) == 2024
    assert littlebit().rank(4096, 4096) == 1000
    assert littlebit().rank(10, 64) == 8
    assert littlebit().rank(6, 25) == 6


def test_littlebit_has_the_gradient_of_the_tanh():
    smooth = import_module("runner.quantization.littlebit").SmoothSign
    x = torch.tensor([-0.02, -0.001, 0.0, 0.005, 3.0], dtype=torch.float64, requires_grad=True)
    y = smooth.apply(x, torch.tensor(100.0, dtype=torch.float64))
    assert y.tolist() == [-1, -1, 1, 1, 1]
    (found,) = torch.autograd.grad(y.sum(), x)
    h = 1e-6
    slope = (np.tanh(100 * (x.detach().numpy() + h)) - np.tanh(100 * (x.detach().numpy() - h))) / (2 * h)
    np.testing.assert_allclose(found, slope, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("settings", [{"stride": 2, "padding": 1}, {"padding": 2, "padding_mode": "circular"}])
def test_littlebit_convolutions_are_the_one_with_the_product_of_the_factors(settings):
    layer = nn.Conv2d(3, 12, 3, **settings).double()
    plain = nn.Conv2d(3, 12, 3, **settings).double()
    import_module("runner.quantization.littlebit").LittleBit().replace(layer)
    with torch.no_grad():
        plain.weight.copy_(layer.codes().decode().view(12, 3, 3, 3)), plain.bias.copy_(layer.bias)
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(layer(x), plain(x), rtol=0, atol=1e-10)
    # twice 8 ranks of 27 + 12 signs, and vectors of 12, 8 and 27 numbers of 16 bits, for 324 weights
    assert layer.bits() == pytest.approx(2 * (8 * 39 + 16 * 47) / 324)


# ---- which layers


def test_first_and_last_are_those_that_run_first_and_last_and_signs_are_found():
    model = ResNet((3, 16, 16), 4, depth=8)
    made = LSQ(bits=3).prepare(model, a_batch(3, 16, 16))
    layers = quantized(made)
    assert len(layers) == 8
    assert [layer.quantize_w.bits for layer in layers.values()] == [8, 3, 3, 3, 3, 3, 3, 8]
    signs = {name: bool(layer.quantize_x.low < 0) for name, layer in layers.items()}
    assert signs == {name: name == "body.0" for name in layers}  # every other one follows a ReLU
    assert layers["body.0"].quantize_x.low == -128
    float_ends = LSQ(bits=3, ends="float").prepare(ResNet((3, 16, 16), 4, depth=8), a_batch(3, 16, 16))
    assert len(quantized(float_ends)) == 6
    same = LSQ(bits=3, ends="same", inputs=5).prepare(ResNet((3, 16, 16), 4, depth=8), a_batch(3, 16, 16))
    assert {(layer.quantize_w.bits, layer.quantize_x.bits) for layer in quantized(same).values()} == {(3, 5)}


def test_calibration_leaves_the_model_as_it_was():
    model = ResNet((3, 16, 16), 4, depth=8).train()
    model.body[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    LSQ().prepare(model, a_batch(3, 16, 16))
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert model.training and not model.body[1].training and model.body[4].conv1.quantize_w.training
    assert all(norm.track_running_stats for norm in model.modules() if isinstance(norm, nn.BatchNorm2d))


@pytest.mark.parametrize(
    "name, count", [("resnet10t", 15), ("vit_tiny_patch16_224", 50), ("mobilenetv3_small_050", 54)]
)
def test_timm(name, count):
    """Conv2d and Linear of whatever timm builds, its own kinds included, by their number in its source."""
    model = Timm((3, 32, 32), 5, name, args={"patch_size": 8} if name.startswith("vit") else {})
    plain = sum(isinstance(module, nn.Linear | nn.Conv2d) for module in model.modules())
    out = LSQ().prepare(model, a_batch(3, 32, 32, size=4))(torch.randn(2, 3, 32, 32))
    assert len(quantized(model)) == plain == count
    out.logits.sum().backward()
    scales = [p for n, p in model.named_parameters() if n.endswith("scale")]
    assert len(scales) == 2 * count
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in scales)


def test_nothing_replaced_is_an_error_that_says_what_was_looked_for():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Bilinear(4, 4, 3)

        def forward(self, x):
            return self.mix(x, x)

    with pytest.raises(ValueError, match="looked for Linear and Conv2d in Odd, and its layers .* are Bilinear$"):
        LSQ().prepare(Odd(), a_batch(4))
    with pytest.raises(ValueError, match=r"body\.1 and head are the first and the last .* ends=float") as error:
        LSQ(ends="float").prepare(Mlp((4,), 3, [8]), a_batch(4))
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="^quantization: nothing is left"):
        trainer(*SMALL, "quantization=lsq", "quantization.ends=float")


def test_a_layer_whose_weight_is_used_behind_its_back_is_left_alone():
    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.a(x) + x @ self.b.weight)

    assert set(quantized(LSQ().prepare(Fused(), a_batch(4)))) == {"a", "head"}


def test_settings_that_contradict_each_other():
    with pytest.raises(ValueError, match="affine=true needs another range"):
        LSQ(affine=True)
    with pytest.raises(ValueError, match="two bits or more"):
        LSQ(bits=1, affine=True, range="minmax")


# ---- calibration


def test_calibration_is_a_recorded_part_of_the_training_split():
    runs = [trainer(*SMALL, "quantization=lsq", "dataset.val=0.2", f"seed={seed}") for seed in (0, 0, 1)]
    records = [run.dataset.record["calibration"] for run in runs]
    assert records[0] == records[1] != records[2]
    assert records[0]["samples"] == 128 and records[0]["of"] == "train"
    assert "calibration" not in trainer(*SMALL).dataset.record
    few = trainer(*SMALL, "quantization=lsq", "quantization.calibration=1000")
    assert few.dataset.record["calibration"]["samples"] == len(few.dataset.train)


def test_scales_of_inputs_come_from_the_calibration_samples():
    """All of the training split as calibration: the first step by the formula from those pixels and no others."""
    run = trainer(*SMALL, "quantization=lsq", "quantization.calibration=200", "dataset.val=0", double=True)
    (batch,) = run.loader.evaluate(run.dataset.train, 200)
    expected = reference("lsq").first_step(batch.x.numpy(), 8, True)
    assert run.model.body[1].quantize_x.scale.item() == pytest.approx(expected, rel=1e-12)


def test_every_process_calibrates_with_all_of_the_samples():
    run = trainer(*SMALL, "quantization=lsq")
    parts = []
    for rank in range(2):
        run.loader.rank, run.loader.world = rank, 2
        parts.append(calibration_batch(run.dataset, run.loader, 0, 50))
    assert len(parts[0]) == 50
    assert torch.equal(parts[0].x, parts[1].x)
    assert len(next(iter(run.loader.evaluate(run.dataset.train, 50)))) == 50  # of this process's half


# ---- BatchNorm


def shaken(model: nn.Module) -> nn.Module:
    """With statistics and parameters of BatchNorm as after training."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 2), nn.init.normal_(norm.bias)
            norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2)
    return model.double().eval()


@pytest.mark.parametrize(
    "build_model, norms",
    [
        (lambda: ResNet((3, 16, 16), 4, depth=20), 19),
        (lambda: Timm((3, 32, 32), 5, "resnet10t"), 14),
        (lambda: Timm((3, 32, 32), 5, "mobilenetv3_small_050"), 34),
    ],
    ids=["resnet20", "resnet10t", "mobilenetv3"],
)
def test_folding_changes_no_output(build_model, norms):
    model = shaken(build_model())
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == norms
    x = torch.randn(4, 3, *([16, 16] if norms == 19 else [32, 32]), dtype=torch.float64)
    with torch.no_grad():
        before = model(x)
        folded = fold(model, x[:2])
        after = model(x)
    assert len(folded) == norms
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert before.logits.abs().max() > 0.1
    torch.testing.assert_close(after.logits, before.logits, rtol=1e-9, atol=1e-9)


def test_a_batchnorm_whose_input_is_used_elsewhere_is_not_folded():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.last = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

        def forward(self, x):
            from runner.core.batch import Output

            y = self.conv(x)
            z = self.last(self.norm(y) + y).mean((2, 3))
            return Output(z, z)

    model = shaken(Fork())
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    before = model(x).logits
    assert fold(model, x) == {}
    assert torch.equal(model(x).logits, before)
