"""Rounding after training, and what is deployed and reported."""

import itertools
from importlib import import_module

import numpy as np
import pytest
import torch
from torch import nn

from runner.command.build import build
from runner.core import checkpoint
from runner.core.batch import Batch
from runner.engine.result import summary
from runner.engine.run import run
from runner.model.cnn import Cnn
from runner.model.mlp import Mlp
from runner.model.resnet import ResNet
from runner.quantization import deploy
from runner.quantization.adaround import AdaRound, annealed, pull, rectified, rectifiers, start
from runner.quantization.lsq import LSQ
from runner.quantization.ptq import PTQ
from runner.quantization.quantizer import Codes
from tests.engine.test_replicas import advance
from tests.quantization.test_quantization import AFTER, NAMES, shaken
from tests.tiny import SMALL, compose, trainer

DEEP = [*SMALL[:-1], "model.hidden=[16,16]"]
SHORT = {"adaround": ["quantization.steps=20"], "adaquant": ["quantization.steps=20", "quantization.tune=20"]}


def a_batch(*shape: int, size: int = 64) -> Batch:
    return Batch(torch.randn(size, *shape), torch.randint(0, 4, (size,)), torch.arange(size))


# ---- rounding


@pytest.mark.parametrize("name", AFTER)
def test_training_is_that_of_the_full_network_and_conversion_leaves_it_alone(name):
    whole, rounded = (trainer(*DEEP, f"quantization={option}", *SHORT.get(option, [])) for option in ("none", name))
    advance(whole, 3), advance(rounded, 3)
    assert torch.equal(whole.weights.data, rounded.weights.data)
    before = {key: value.clone() for key, value in rounded.model.state_dict().items()}
    batch = next(iter(rounded.loader.evaluate(rounded.dataset.train, 64)))
    made = PTQ(bits=4).convert(rounded.model, batch)
    assert len(deploy.layers(made)) == 3
    assert all(torch.equal(value, before[key]) for key, value in rounded.model.state_dict().items())


def test_weights_are_rounded_to_nearest_and_inputs_to_their_range():
    """Four bits, symmetric, from the whole range: s = max(max w / 7, -min w / 8)."""
    model, batch = Mlp((6,), 3, [8]).double(), a_batch(6)
    batch.x = batch.x.double()
    made = PTQ(bits=4, ends="same", range="minmax").convert(model, batch)
    full = PTQ().full(model, batch)
    x = batch.x
    for name, layer in deploy.layers(made).items():
        w = full.get_submodule(name).weight.numpy()
        s = max(w.max() / 7, -w.min() / 8)
        np.testing.assert_allclose(layer.codes().decode(), s * np.clip(np.round(w / s), -8, 7), rtol=1e-12)
    first, last = deploy.layers(made).values()
    hidden = full.body(x).clamp(min=0)
    assert first.quantize_x.scale.item() == pytest.approx(max(x.max() / 7, -x.min() / 8).item(), rel=1e-12)
    assert last.quantize_x.scale.item() == pytest.approx(hidden.max().item() / 15, rel=1e-12)  # behind a ReLU


def test_batchnorm_is_folded_first_and_statistics_are_those_of_training():
    model, batch = shaken(ResNet((3, 8, 8), 4, depth=8)), a_batch(3, 8, 8)
    batch.x = batch.x.double()
    made = PTQ(inputs="float").convert(model, batch)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in made.modules())
    with torch.no_grad():
        a, b = model(batch.x).logits, made(batch.x).logits
    assert 0 < (a - b).norm() / a.norm() < 0.05


def test_rectified_sigmoid_and_the_pull_of_the_regulariser():
    plain = import_module("tests.reference.quantization_adaround")
    v = torch.tensor([-4.0, -2.0, -0.7, -0.01, 0.3, 1.5, 2.2, 5.0], dtype=torch.float64)
    h, slope = rectified(v)
    np.testing.assert_allclose(h, [plain.h(x) for x in v.tolist()], rtol=1e-14)
    np.testing.assert_allclose(slope, [plain.slope(plain.h, x) for x in v.tolist()], rtol=1e-7, atol=1e-12)
    for beta in (2.0, 7.5, 20.0):
        expected = [plain.slope(lambda x, b=beta: plain.regulariser(x, b), x) for x in v.tolist()]
        np.testing.assert_allclose(pull(h, beta) * slope, expected, rtol=1e-6, atol=1e-9)
    rest = torch.tensor([0.0, 0.1, 0.5, 0.99], dtype=torch.float64)
    torch.testing.assert_close(rectified(start(rest))[0], rest)


def test_beta_by_hand():
    """100 steps, 20 of them without: half-way through the others the cosine is 0 and beta (20 + 2) / 2."""
    assert annealed(19, 100, 0.2, 20.0, 2.0) is None
    assert annealed(20, 100, 0.2, 20.0, 2.0) == 20
    assert annealed(60, 100, 0.2, 20.0, 2.0) == pytest.approx(11)
    assert annealed(99, 100, 0.2, 20.0, 2.0) == pytest.approx(2, abs=0.01)


def test_which_outputs_are_rectified():
    found = rectifiers(PTQ().full(ResNet((3, 8, 8), 4, depth=8), a_batch(3, 8, 8)), torch.randn(2, 3, 8, 8))
    assert found == {"body.0", "body.3.conv1", "body.4.conv1", "body.5.conv1"}  # not what a shortcut is added to


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("inputs", ["float", 4])
@pytest.mark.parametrize("steps", [1, 300])
def test_no_layer_is_further_off_than_rounded_to_nearest_and_weights_go_up_or_down(bits, inputs, steps):
    """The error of each layer behind the ones that were rounded before it, as the method has it."""
    torch.manual_seed(bits)
    model, batch = Cnn((1, 8, 8), 4, widths=[4, 6], hidden=12).eval(), a_batch(1, 8, 8, size=128)
    settings = {"bits": bits, "inputs": inputs, "ends": "same"}
    made = AdaRound(**settings, steps=steps, lr=0.01).convert(model, batch)
    full, nearest = PTQ().full(model, batch), PTQ(**settings).convert(model, batch)
    rectify, gained = rectifiers(full, batch.x[:2]), []
    for name, layer in deploy.layers(made).items():
        whole, act = full.get_submodule(name), torch.relu if name in rectify else lambda y: y
        _, wanted = deploy.seen(full, whole, batch.x)
        x, mine = deploy.seen(made, layer, batch.x)
        theirs = nearest.get_submodule(name)(x)
        errors = [(act(y) - act(wanted)).square().mean().item() for y in (mine, theirs)]
        assert errors[0] <= errors[1] * (1 + 1e-6), name
        gained.append(errors[0] < 0.95 * errors[1])
        codes = layer.codes()
        v = (whole.weight / codes.scale).clamp(-codes.zero, 2**bits - 1 - codes.zero)
        levels = codes.values - codes.zero
        assert torch.equal(torch.minimum(torch.maximum(levels, v.floor()), v.ceil()), levels)
    assert steps == 1 or any(gained)


def test_the_rounding_found_is_near_the_best_of_all():
    """Eight weights, inputs that are much alike: 256 ways to round them, tried one by one."""
    torch.manual_seed(2)  # here 56 of them are better than nearest rounding
    layer = nn.Linear(8, 1, bias=False)
    x = torch.randn(256, 1) + 0.3 * torch.randn(256, 8)
    model = nn.Sequential(layer)
    quantized = LSQ(bits=3, inputs="float", ends="same", range="mse").prepare(model, Batch(x, x, x))[0]
    wanted = x @ quantized.weight.detach().T
    codes = AdaRound(steps=3000, lr=0.01).learn(quantized, x, wanted, False)

    def error(w) -> float:
        return (x @ w.T - wanted).square().mean().item()

    s, floor = codes.scale, (quantized.weight.detach() / codes.scale).floor()
    ways = (torch.tensor([way]) for way in itertools.product([0.0, 1.0], repeat=8))
    every = sorted(error((floor + way).clamp(-4, 3) * s) for way in ways)
    nearest = error(quantized.codes().decode())
    assert error(codes.decode()) <= every[5] < nearest


# ---- the file


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 8, 11])
def test_packed_integers_come_back_and_have_no_gaps(bits):
    values = torch.from_numpy(np.random.default_rng(bits).integers(0, 2**bits, 1001))
    packed = deploy.pack(values, bits)
    assert len(packed) == -(-1001 * bits // 8)
    assert torch.equal(deploy.unpack(packed, bits, 1001).long(), values)


def test_packing_by_hand():
    """1, 2 and 3 in two bits each: 1 + 2 * 4 + 3 * 16."""
    assert deploy.pack(torch.tensor([1, 2, 3]), 2) == bytes([57])
    assert deploy.unpack(bytes([57]), 2, 3).tolist() == [1, 2, 3]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_file_is_smaller_by_what_the_bits_say(bits, tmp_path):
    """Two layers of 512 x 512; biases, steps and bounds are what is left."""
    model = LSQ(bits=bits, ends="same").prepare(Mlp((512,), 10, [512, 512]), a_batch(512))
    state, stored = deploy.encode(model)
    checkpoint.save(state, tmp_path / "x.pt")
    weights = 512 * 512 * 2 + 5120
    assert weights * bits / 8 < (tmp_path / "x.pt").stat().st_size < weights * bits / 8 + 9000
    assert all(bits < value < bits + 0.1 for value in stored.values())


def test_channels_of_zeros_are_not_stored():
    codes = Codes(torch.randint(0, 15, (6, 40), dtype=torch.uint8), torch.rand(6, 1), torch.full((6, 1), 8.0), 4)
    codes.values[2], codes.values[4] = 8, 8
    content = deploy.Content()
    entry = deploy._put_codes(content, codes)
    assert entry["codes"]["at"][1] == 4 * 40 / 2
    assert torch.equal(deploy._get_codes(content, entry).decode(), codes.decode())


@pytest.mark.parametrize("name", [*NAMES, *AFTER])
def test_every_option_is_deployed_and_reported(name, tmp_path):
    words = [*DEEP, "train.epochs=1", "hook=[ema]", f"quantization={name}", *SHORT.get(name, [])]
    result = run(compose(*words, f"outputs_dir={tmp_path}"), words, say=lambda *_: None)
    found, place = result["quantization"], tmp_path / "runs" / result["id"]
    assert found["fake"]["test_accuracy"] == pytest.approx(found["deployed"]["test_accuracy"], abs=0.003)
    assert found["bytes"] == (place / "quantized.pt").stat().st_size
    assert (place / "quantization.png").stat().st_size > 1000
    assert found["bytes_full"] > 4 * sum(layer["weights"] for layer in found["layers"])
    if name in AFTER:
        assert found["full"]["test_accuracy"] == result["last"]["test_accuracy"]
        assert all(0 < layer["error"] < 1 for layer in found["layers"])
    elif name != "littlebit":
        assert found["fake"]["test_accuracy"] == result["last"]["test_accuracy"]
    assert (found["full"] is None) == (name == "littlebit")
    assert f"deployed {100 * found['deployed']['test_accuracy']:.2f} %  {found['bytes']:,} bytes" in summary(result)


@pytest.mark.parametrize("name", ["lsq", "dorefa", "self_compression", "littlebit"])
def test_what_is_read_back_computes_the_same(name, tmp_path):
    made = trainer(*DEEP, f"quantization={name}")
    advance(made, 3)
    state, _ = deploy.encode(made.model)
    checkpoint.save(state, tmp_path / "x.pt")
    blank = trainer(*DEEP, f"quantization={name}", "seed=1").model  # nothing may come from the model it is put into
    read = deploy.decode(checkpoint.load(tmp_path / "x.pt"), blank)
    batch = next(iter(made.loader.evaluate(made.dataset.test, 200)))
    with torch.no_grad():
        a, b = made.model.eval()(batch.x).logits, read(batch.x).logits
    if name == "lsq":
        assert torch.equal(a, b)
    else:
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_file_of_another_model_is_refused():
    state, _ = deploy.encode(LSQ().prepare(Mlp((4,), 3, [8]), a_batch(4)))
    with pytest.raises(ValueError, match="quantized.pt is of another model: it has the quantized layers body.1, head"):
        deploy.decode(state, LSQ(ends="float").prepare(Mlp((4,), 3, [8, 8]), a_batch(4)))


def test_deploying_something_else_is_an_error(monkeypatch, tmp_path):
    honest = deploy.decode

    def broken(state, model):
        model = honest(state, model)
        for layer in deploy.layers(model).values():
            layer.quantize_w.values = layer.quantize_w.values.flip(0)
        return model

    monkeypatch.setattr(deploy, "decode", broken)
    words = [*DEEP, "quantization=lsq"]
    with pytest.raises(RuntimeError, match="what was deployed is not what was trained: (val|test)_accuracy"):
        run(compose(*words, f"outputs_dir={tmp_path}"), words, say=lambda *_: None)


@pytest.mark.parametrize(
    "words",
    [
        ["quantization=biper", "quantization.inputs=float"],
        ["quantization=biper"],
        ["quantization=reste"],
        ["quantization=dorefa"],
    ],
    ids=["biper, float", "biper", "reste", "dorefa"],
)
def test_full_precision_is_a_network_that_computes_what_was_learned(words):
    """Weights are used on another scale than they are kept on: by themselves they say nothing, nor does BatchNorm."""
    words = ["model=resnet20", "model.depth=8", "train.epochs=2", "optim=adam", "optim.lr=0.003", *words]
    made = trainer(*words)
    advance(made, made.steps)
    transform = build(compose(*words)["quantization"], "quantization")
    batch = next(iter(made.loader.evaluate(made.dataset.train, 256)))
    before = made.evaluate(made.dataset.test)["accuracy"]
    logits, y = made.predict(made.dataset.test, transform.full(made.model, batch))
    assert made.evaluate(made.dataset.test)["accuracy"] == before > 0.6
    assert (logits.argmax(-1) == y).double().mean() > before - 0.2  # some 0.1 without the mean of its own inputs


def test_one_calibration_sample_has_no_statistics():
    made = trainer("model=resnet20", "model.depth=8", "dataset.subset=64", "quantization=reste")
    transform = build(compose("quantization=reste")["quantization"], "quantization")
    full = transform.full(made.model, next(iter(made.loader.evaluate(made.dataset.train, 1))))
    kept = [value for name, value in made.model.named_buffers() if "running" in name]
    assert all(torch.equal(*pair) for pair in zip(kept, [v for n, v in full.named_buffers() if "running" in n]))
