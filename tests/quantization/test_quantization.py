"""The contract of the quantization seam over every option, and each method against its formula."""

import pytest
import torch
from torch import nn

from runner.command.listing import conf_dir, options
from runner.core.batch import Batch, Output
from runner.core.mistake import ConfigError
from runner.engine.assemble import calibration_batch
from runner.model.mlp import Mlp
from runner.model.resnet import ResNet
from runner.model.timm import Timm
from runner.quantization.fake import Float
from runner.quantization.fold import fold
from runner.quantization.lsq import LSQ
from scripts import packing
from tests.engine.test_replicas import advance, assert_pack_equals_alone, doubled
from tests.quantization.made import DEEP, quantized, reference
from tests.test_compose import assert_resumed_equals_whole
from tests.tiny import SMALL, trainer

AFTER = ("ptq", "adaround", "adaquant")  # training: tests/quantization/test_post_training.py

NAMES = [name for name in options("quantization", [conf_dir()]) if name not in ("none", *AFTER)]


def a_batch(*shape: int, size: int = 16) -> Batch:
    return Batch(torch.randn(size, *shape), torch.randint(0, 4, (size,)), torch.arange(size))


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
    small = ["model.widths=[4,6]", "model.hidden=16"] if model == "cnn" else ["model.depth=8"]
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

            y = self.conv(x)
            z = self.last(self.norm(y) + y).mean((2, 3))
            return Output(z, z)

    model = shaken(Fork())
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    before = model(x).logits
    assert fold(model, x) == {}
    assert torch.equal(model(x).logits, before)
