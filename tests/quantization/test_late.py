"""Full precision first: `quantization.begin`, the schedule that goes with it, and layers that are Linear or Conv2d by
another name."""

import logging
from importlib import import_module
from itertools import islice

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from runner.command.listing import conf_dir, options
from runner.core.mistake import ConfigError
from runner.model.timm import Timm
from runner.quantization.fake import QuantizedConv2d, QuantizedLinear, QuantizedSame, Same, kind
from runner.quantization.littlebit import LittleBit
from runner.quantization.lsq import LSQ
from runner.quantization.self_compression import SelfCompression
from runner.schedule.wsd import WSD
from runner.sweep.kind import structure
from tests.engine.test_replicas import advance, assert_pack_equals_alone, batches, doubled
from tests.federated.made import SKEWED, federation, rounds
from tests.federated.test_side_by_side import both_ways
from tests.quantization.made import DEEP, quantized
from tests.quantization.test_quantization import a_batch
from tests.test_compose import assert_resumed_equals_whole
from tests.tiny import SMALL, compose, trainer

EVERY = [name for name in options("quantization", [conf_dir()]) if name != "none"]
NAMES = [name for name in EVERY if "begin" in compose(f"quantization={name}")["quantization"]]
HALF = ["model.hidden=[16,16]", "quantization.begin=0.5"]


def lsq():
    return import_module("tests.reference.quantization_lsq")


def on(run) -> set[bool]:
    return {layer.quantizing for layer in quantized(run.model).values()}


def test_options_that_can_begin_late():
    assert {"lsq", "dorefa", "reste", "biper", "gaqat", "self_compression"} <= set(NAMES)


@pytest.mark.parametrize("optim", ["sgd", "sam"])
@pytest.mark.parametrize("name", NAMES)
def test_until_then_it_is_the_model_in_full_precision(name, optim):
    """12 steps, of which 6 are the plain run's; the seventh is not."""
    words = [*DEEP, f"optim={optim}"]
    plain = trainer(*words, double=True)
    run = trainer(*words, f"quantization={name}", "quantization.begin=0.45", double=True)  # 5.4 steps
    assert run.steps == 12
    for step, (a, b) in enumerate(islice(zip(batches(plain), batches(run)), 7)):
        loss, expected = run.step(b), plain.step(a)
        assert on(run) == {step >= 6}
        assert (abs(loss - expected) < 1e-12) == (step < 6)
        mine = dict(run.model.named_parameters())
        for key, value in plain.model.named_parameters() if step < 6 else ():
            torch.testing.assert_close(mine[key], value, rtol=0, atol=1e-13)


@pytest.mark.parametrize("settings", [[], ["quantization.channels=true"], ["quantization.learned=false"]])
def test_scales_are_calibrated_when_it_begins(settings):
    """By the formula from the weights and pixels of then."""
    words = [*DEEP, "quantization=lsq", "quantization.begin=0.5", "quantization.calibration=200", "dataset.val=0"]
    run = trainer(*words, *settings, double=True)
    advance(run, run.steps // 2)
    layer = run.model.body[3]
    w, start = layer.weight.detach().numpy().copy(), layer.quantize_w.present()[0].clone()
    (batch,) = run.loader.evaluate(run.dataset.train, 200)
    with torch.no_grad():
        x = torch.relu(run.model.body[1](batch.x.flatten(1))).numpy()
    scales = []
    forward = type(layer).forward

    def seen(self, value):
        if self.quantizing and not scales:
            scales.extend(part.present()[0].detach().clone().numpy() for part in (self.quantize_w, self.quantize_x))
        return forward(self, value)

    layer.__class__ = type("Seen", (QuantizedLinear,), {"forward": seen})
    advance(run, 1)
    rows = [w] if "quantization.channels=true" not in settings else list(w)
    expected = [lsq().first_step(row, 4, True) for row in rows]
    np.testing.assert_allclose(scales[0].flatten(), expected, rtol=1e-12)
    if not settings or "channels" in settings[0]:
        assert scales[1].item() == pytest.approx(lsq().first_step(x, 4, False), rel=1e-12)
        assert abs(scales[0] - start.detach().numpy()).max() > 1e-6


def test_exponents_and_bits_of_self_compression_begin_anew():
    run = trainer(*DEEP, "quantization=self_compression", "quantization.begin=0.5", "optim.lr=0", double=True)
    layer = run.model.body[3]
    with torch.no_grad():
        layer.weight.mul_(16), layer.quantize_w.bits.fill_(3), layer.quantize_w.shift.fill_(0.5)
    start = layer.quantize_w.start.clone()
    advance(run, run.steps // 2 + 1)
    torch.testing.assert_close(layer.quantize_w.start, start + 4, rtol=0, atol=1e-12)
    assert (layer.quantize_w.bits == 8).all() and (layer.quantize_w.shift == 0).all()


@pytest.mark.parametrize("begin, steps", [(0.999, 10), (0.5, 1)])
def test_a_run_that_would_never_quantize_is_refused(begin, steps):
    with pytest.raises(ConfigError, match=f"^quantization=lsq: begin={begin} comes after {steps} steps, and there are"):
        trainer(*SMALL, "quantization=lsq", f"quantization.begin={begin}", f"train.steps={steps}")


@pytest.mark.parametrize("begin, steps, first", [(0.1, 30, 3), (0.3, 10, 3), (0.25, 10, 3), (0.8, 10, 8)])
def test_the_step_it_begins_with(begin, steps, first):
    run = trainer(*SMALL, "quantization=lsq", f"quantization.begin={begin}", f"train.steps={steps}")
    begun = [step for step, batch in enumerate(islice(batches(run), steps)) if (run.step(batch), on(run) == {True})[1]]
    assert begun == list(range(first, steps))


@pytest.mark.parametrize("stop_after", [4, 6, 9])  # before; just before the first quantized step, the seventh; after it
@pytest.mark.parametrize("name", NAMES)
def test_resume(name, stop_after, tmp_path):
    words = ["dataset.subset=32", *HALF, f"quantization={name}", "optim=sam", "hook=[ema,clip]", "schedule=wsd"]
    assert_resumed_equals_whole(words, stop_after, tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_a_pack_is_as_alone(name):
    common = ["train.batch_size=8", "train.epochs=8", "device=cpu", f"quantization={name}", "quantization.begin=0.3"]
    common += ["model.hidden=[16,16]"]
    if name == "self_compression":  # else the largest weight lies on the edge of the grid, where rounding decides
        common.append("quantization.exponent=-9")
    cells = [[*common, "seed=0"], [*common, "seed=1", "optim.lr=0.003"]]
    assert_pack_equals_alone(doubled, cells)  # 20 of 40 steps, 8 of them quantized


def test_runs_that_begin_at_different_times_are_not_packed():
    words = ["train.batch_size=8", "device=cpu", "model.hidden=[16]", "quantization=lsq"]
    configs = [structure(compose(*words, f"quantization.begin={begin}")) for begin in (0.5, 0.5, 0.6)]
    assert configs[0] == configs[1] != configs[2]
    from runner.engine.replicas import Replicas, Unpackable

    with pytest.raises(Unpackable, match="begin differs"):
        Replicas(doubled([[*words, f"quantization.begin={begin}"] for begin in (0.5, 0.6)]))


@pytest.mark.parametrize("begin", [0.5, 0.6])  # at the end of the second round of four, and within the third
def test_clients(begin):
    """Each begins at its own share of its own steps, side by side as alone; the server has what they have."""
    words = [*SKEWED, "federated=fedavg", "federated.rounds=4", "quantization=lsq", f"quantization.begin={begin}"]
    both_ways(words)
    run, algorithm = federation(*words)
    states = []
    for _ in range(4):
        rounds(run, algorithm, 1)
        run.model.eval()
        states.append(on(run))
    assert states == [{False}, {False}, {True}, {True}]


def test_weights_know_whether_they_are_quantized():
    runs = [trainer(*DEEP, "quantization=lsq", "quantization.begin=0.5", f"seed={seed}") for seed in (0, 1)]
    x = next(runs[0].loader.epoch(0)).x
    for _ in range(2):
        advance(runs[0], 4)
        runs[1].model.load_state_dict(runs[0].model.state_dict())
        runs[1].model.train()
        assert on(runs[0]) == on(runs[1]) == {runs[0].count > 6}
        assert torch.equal(runs[0].model(x).logits, runs[1].model(x).logits)


def test_without_it_nothing_is_added():
    run = trainer(*SMALL, "quantization=lsq")
    assert "late" not in run.hooks.named
    assert not any(name.endswith(".on") for name in run.model.state_dict())


# ---- the schedule


@pytest.mark.parametrize("shape, half", [("sqrt", 1 - 0.5**0.5), ("linear", 0.5), ("cosine", 0.5)])
def test_wsd_by_hand(shape, half):
    """20 steps of which 8 cool down: the fifth of those, step 16, is half way; the second has t = 1/8."""
    made = WSD(begin=0.6, shape=shape, final=0.1)
    found = [made(step, 20, 5) for step in range(20)]
    assert found[:13] == [1.0] * 13
    assert found[16] == pytest.approx(0.1 + 0.9 * half)
    eighth = {"sqrt": 1 - 8**-0.5, "linear": 0.875, "cosine": (1 + np.cos(np.pi / 8)) / 2}[shape]
    assert found[13] == pytest.approx(0.1 + 0.9 * eighth)
    assert all(a > b for a, b in zip(found[12:], found[13:]))


def test_wsd_counts_from_the_start_of_training_and_waits_for_the_warm_up():
    """10 steps, 4 of warm-up: a cool-down from step 5 on is as without; one from step 2 on begins with step 4."""
    linear = WSD(begin=0.5, shape="linear", warmup=2.0)
    assert [linear(step, 10, 2) for step in range(10)] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    early = WSD(begin=0.2, shape="linear", warmup=2.0)
    expected = [0.25, 0.5, 0.75, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    assert [early(step, 10, 2) for step in range(10)] == pytest.approx(expected)


def test_the_cool_down_is_fused_with_quantization():
    """The first step with less than the base learning rate is the second quantized one: the decay starts at it."""
    words = [*SMALL, "quantization=lsq", "quantization.begin=0.3", "schedule=wsd", "schedule.begin=0.3"]
    run = trainer(*words, "train.steps=10")
    rates = []
    for batch in islice(batches(run), 10):
        run.step(batch)
        rates.append((on(run) == {True}, run.optimizer.param_groups[0]["lr"] < run.base_lrs[0]))
    assert rates == [(step >= 3, step >= 4) for step in range(10)]


# ---- Linear and Conv2d by another name


class Renamed(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight, self.bias)


class Dropping(nn.Linear):
    def forward(self, x):
        return super().forward(F.dropout(x, 0.5, self.training))


class Doubling(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Gained(nn.Conv2d):
    def __init__(self, *args):
        super().__init__(*args)
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.gain * super().forward(x)


def padded(x, kernel, stride, dilation):
    """TensorFlow's SAME, an axis of the image at a time: ceil(n / s) outputs, the odd zero behind."""
    for axis in (2, 3):
        n = x.shape[axis]
        reach = (int(np.ceil(n / stride)) - 1) * stride + (kernel - 1) * dilation + 1
        pad = max(reach - n, 0)
        widths = [(0, 0)] * 4
        widths[axis] = (pad // 2, pad - pad // 2)
        x = np.pad(x, widths)
    return x


@pytest.mark.parametrize("kernel, stride, dilation", [(3, 2, 1), (2, 2, 1), (5, 3, 1), (3, 1, 2), (1, 2, 1)])
@pytest.mark.parametrize("size", [8, 9, 11])
def test_padding_as_tensorflow_does(kernel, stride, dilation, size):
    layer = Same(2, 3, kernel, stride, dilation=dilation).double()
    x = torch.randn(2, 2, size, size, dtype=torch.float64)
    whole = torch.tensor(padded(x.numpy(), kernel, stride, dilation))
    expected = F.conv2d(whole, layer.weight, layer.bias, stride, 0, dilation)
    assert expected.shape[-1] == -(-size // stride)
    torch.testing.assert_close(layer(x), expected)


def test_what_a_layer_is_is_found_by_what_it_computes():
    timm = pytest.importorskip("timm.layers")
    x, image = torch.randn(4, 6), torch.randn(4, 3, 8, 8)
    assert kind(nn.Linear(6, 5), x) is nn.Linear
    assert kind(Renamed(6, 5), x) is kind(timm.Linear(6, 5, bias=False), x) is nn.Linear
    assert kind(Dropping(6, 5), x) is None
    for stride in (1, 2):
        for size in (1, 2, 3):
            expected = Same if (size, stride) != (1, 1) and size > 1 else nn.Conv2d
            assert kind(timm.Conv2dSame(3, 4, size, stride), image) is expected, (size, stride)
    assert kind(timm.Conv2dSame(3, 4, 3), image[..., :1, :1]) is Same  # without padding the kernel would not fit
    assert kind(Doubling(3, 4, 3), image) is kind(Gained(3, 4, 3), image) is None
    assert kind(timm.StdConv2d(3, 4, 3), image) is None
    changed = nn.utils.parametrize
    layer = nn.Linear(6, 5)
    changed.register_parametrization(layer, "weight", nn.Identity())
    assert kind(layer, x) is None


def test_timms_padding_is_quantized():
    model = Timm((3, 33, 33), 5, "tf_mobilenetv3_small_minimal_100").eval()
    before = model(x := torch.randn(2, 3, 33, 33)).logits
    made = LSQ(bits=8, range="minmax").prepare(model, a_batch(3, 33, 33, size=8))
    layers = quantized(made)
    assert sum(type(layer) is QuantizedSame for layer in layers.values()) == 5
    assert len(layers) == sum(isinstance(layer, nn.Linear | nn.Conv2d) for layer in made.modules())
    after = made(x).logits
    assert not torch.equal(before, after)
    assert (after - before).abs().max() < 0.2 * before.abs().max()


def test_other_methods_keep_the_padding():
    timm = pytest.importorskip("timm.layers")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = timm.Conv2dSame(3, 16, 3, 2)

        def forward(self, x):
            return self.conv(x)

    x = a_batch(3, 8, 8)
    net = Net()
    compressed = SelfCompression().prepare(Net(), x)
    with torch.no_grad():
        compressed.conv.quantize_w.bits[::2] = 0
    torch.testing.assert_close(SelfCompression().convert(compressed, x)(x.x), compressed(x.x))
    factored = LittleBit(ends="same").prepare(net, x)
    plain = Same(3, 16, 3, 2)
    with torch.no_grad():
        plain.weight.copy_(factored.conv.codes().decode().view(16, 3, 3, 3)), plain.bias.copy_(factored.conv.bias)
    torch.testing.assert_close(factored(x.x), plain(x.x))


def test_what_is_left_alone_is_named_in_one_line(caplog):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 3), Doubling(4, 4, 3), Doubling(4, 4, 3)
            self.unused, self.head = nn.Linear(4, 4), Renamed(4, 2)

        def forward(self, x):
            return self.head(self.c(self.b(self.a(x))).mean((2, 3)))

    with caplog.at_level(logging.WARNING):
        made = LSQ(ends="same").prepare(Net(), a_batch(3, 8, 8))
    assert type(made.a) is QuantizedConv2d and type(made.head) is QuantizedLinear
    assert type(made.b) is type(made.c) is Doubling
    assert [record.message for record in caplog.records] == [
        "left in full precision: 2 Doubling (computes something else; b), 1 Linear (not called as a module; unused)"
    ]
    caplog.clear()
    LSQ(ends="same").prepare(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), a_batch(4))
    assert not caplog.records
