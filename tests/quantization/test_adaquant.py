"""AdaQuant against its reference, the programme against trying everything, and bit-operations by hand."""

import itertools
from importlib import import_module

import numpy as np
import pytest
import torch
from torch import nn

from runner.core.batch import Batch
from runner.core.mistake import ConfigError
from runner.engine.run import run
from runner.model.cnn import Cnn
from runner.model.mlp import Mlp
from runner.model.resnet import ResNet
from runner.quantization import adaquant, deploy
from runner.quantization.adaquant import AdaQuant, programme, renormalize
from runner.quantization.adaround import rectifiers
from runner.quantization.fake import targets
from runner.quantization.lsq import LSQ
from runner.quantization.ptq import PTQ
from tests.quantization.test_post_training import DEEP, a_batch
from tests.quantization.test_quantization import shaken
from tests.tiny import compose, trainer

plain = import_module("tests.reference.quantization_adaquant")

GRID = {"channels": True, "affine": True}

QUICK = {"steps": 0, "tune": 0, "norms": False}


def small(seed: int = 0) -> tuple[nn.Module, Batch]:
    torch.manual_seed(seed)
    return Cnn((1, 8, 8), 4, widths=[4, 6], hidden=12).eval(), a_batch(1, 8, 8, size=128)


# ---- calibration


@pytest.mark.parametrize("rectify", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_calibration_is_the_references(affine, rectify):
    torch.manual_seed(1)
    model, x = Mlp((6,), 4, [5]).double(), torch.randn(40, 6, dtype=torch.float64)
    rates = {"lr": 1e-4, "lr_bias": 2e-4, "lr_weights": 3e-4, "lr_inputs": 5e-3}
    settings = {"bits": 3, "ends": "same", "range": "percentile", "percentile": 85.0}  # so that nothing is on an edge
    method = AdaQuant(**settings, affine=affine, steps=12, samples=40, **rates)
    target = next(iter(targets(model, Batch(x, x, x), 3, "same").values()))
    with torch.no_grad():
        wanted = target.layer(x)
    layer = method.rounded(target, x)
    w, b = layer.weight.clone(), layer.bias.clone()
    grids = [
        part for q in (layer.quantize_w, layer.quantize_x) for part in (7 * q.scale.detach().numpy(), q.low.numpy())
    ]
    start = (wanted.numpy(), w.numpy(), b.numpy(), *grids)
    now = plain.calibrate(x.numpy(), *start, 3, 12, rectify, rates.values())
    method.learn(layer, x, wanted, rectify)
    assert not torch.equal(layer.weight, w)
    np.testing.assert_allclose(layer.weight.detach(), now["w"], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(layer.bias.detach(), now["b"], rtol=1e-6)
    np.testing.assert_allclose(layer.quantize_w.scale.detach() * 7, now["wide_w"], rtol=1e-6)
    np.testing.assert_allclose(layer.quantize_x.scale.detach() * 7, now["wide_x"], rtol=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("inputs", ["float", "same"])
@pytest.mark.parametrize("sequential", [True, False])
def test_no_layer_is_further_off_than_rounded_to_nearest(bits, inputs, sequential):
    model, batch = small(bits)
    settings = {"bits": bits, "inputs": inputs, "ends": "same", **GRID}
    rates = {"steps": 100, "lr": 1e-3, "lr_inputs": 0.02, "tune": 0}
    made = AdaQuant(**settings, **rates, sequential=sequential).convert(model, batch)
    full, nearest = PTQ().full(model, batch), PTQ(**settings).convert(model, batch)
    rectify, gained = rectifiers(full, batch.x[:2]), []
    for name, layer in deploy.layers(made).items():
        given, wanted = deploy.seen(full, full.get_submodule(name), batch.x)
        x = deploy.seen(made, layer, batch.x)[0] if sequential else given
        act = torch.relu if name in rectify else lambda y: y
        errors = [(act(one(x)) - act(wanted)).square().mean().item() for one in (layer, nearest.get_submodule(name))]
        assert errors[0] <= errors[1] * (1 + 1e-6), name
        gained.append(errors[0] < 0.95 * errors[1])
    assert any(gained)


def test_a_calibration_that_does_harm_is_undone():
    model, batch = small()
    made = AdaQuant(steps=20, lr=10.0, lr_bias=10.0, lr_inputs=1000.0, tune=0, norms=False).convert(model, batch)
    nearest = PTQ(bits=4, **GRID).convert(model, batch)
    for a, b in zip(made.state_dict().values(), nearest.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)


def test_without_steps_it_is_rounding_to_nearest():
    model, batch = shaken(ResNet((3, 8, 8), 4, depth=8)), a_batch(3, 8, 8)
    batch.x = batch.x.double()
    made, nearest = AdaQuant(bits=3, **QUICK).convert(model, batch), PTQ(bits=3, **GRID).convert(model, batch)
    assert len(deploy.layers(made)) == 8
    for name, layer in deploy.layers(made).items():
        other = nearest.get_submodule(name)
        assert torch.equal(layer.codes().values, other.codes().values)
        assert layer.quantize_x.bits == other.quantize_x.bits
        torch.testing.assert_close(layer.quantize_x.scale, other.quantize_x.scale)


def test_the_result_depends_on_the_network_and_the_samples_alone():
    model, batch = small()
    method = AdaQuant(steps=5, tune=5, budget=0.2, candidates=[2, 4])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    first = method.convert(model, batch).state_dict()
    torch.rand(3)
    second = method.convert(model, batch).state_dict()
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


# ---- bits


@pytest.mark.parametrize("seed", range(60))
def test_the_programme_finds_what_trying_everything_finds(seed):
    """Increases of all sizes, of one size and tiny ones; costs by bits, of size, and by their squares, operations."""
    draw = np.random.default_rng(seed)
    layers, bits = draw.integers(1, 6), range(2, 2 + draw.integers(1, 8))
    sizes = draw.integers(1, 10 ** draw.integers(1, 8), layers)
    kind = [10 ** draw.uniform(-6, 1, (layers, len(bits))), draw.random((layers, len(bits)))][seed % 2]
    increase = (kind * 1e-3 if seed % 3 == 0 else kind).tolist()
    cost = [[int(size) * k ** (1 + seed % 2) for k in bits] for size in sizes]
    least, most = (sum(map(of, cost)) for of in (min, max))
    limit = least + (most - least) * draw.random()

    def total(table, ways) -> float:
        return sum(row[k] for row, k in zip(table, ways, strict=True))

    every = itertools.product(range(len(bits)), repeat=int(layers))
    best = min(total(increase, ways) for ways in every if total(cost, ways) <= limit)
    found = programme(increase, cost, limit)
    assert total(cost, found) <= limit
    assert total(increase, found) == pytest.approx(best, rel=1e-9)


def test_a_budget_that_is_met_but_for_the_solvers_tolerance_is_not_met():
    """Eight bits for one of two layers; the one that gains more has a weight too many, of a thousand million."""
    one, other = 10**9 + 1, 10**9
    increase, cost = [[5.0, 0.0], [4.9, 0.0]], [[2 * one, 8 * one], [2 * other, 8 * other]]
    assert programme(increase, cost, 8 * one + 2 * other) == [1, 0]
    assert programme(increase, cost, 8 * one + 2 * other - 1) == [0, 1]


def test_no_choice_at_all():
    with pytest.raises(ValueError, match="no choice costs 5 or less: the least is 6"):
        programme([[1.0, 0.0], [0.0]], [[4, 8], [2]], 5)


@pytest.mark.parametrize(
    "of, budget",
    [("size", share) for share in (0.05, 0.08, 0.11, 0.14, 0.2)]
    + [("bit_operations", share) for share in (0.003, 0.006, 0.01, 0.03, 0.05)],
)
def test_bits_are_those_of_the_smallest_sum_of_increases(of, budget):
    """Losses of networks put together from `PTQ`'s, every allocation tried."""
    model, batch = small()
    with torch.no_grad():  # sure of its own labels, so that less precision costs something
        model.head.weight.mul_(20)
        batch.y = model(batch.x).logits.argmax(1)
    settings = {"ends": "same", **GRID}
    bits = [2, 4, 8]
    made = {k: PTQ(bits=k, **settings).convert(model, batch) for k in bits}
    names = list(deploy.layers(made[8]))
    macs = {"body.0": 8 * 8 * 4 * 25, "body.3": 4 * 4 * 6 * 4 * 25, "body.8": 24 * 12, "head": 12 * 4}
    weights = {name: made[8].get_submodule(name).weight.numel() for name in names}
    assert macs.keys() == weights.keys()

    def loss(where=None, k=8) -> float:
        network = PTQ(bits=8, **settings).convert(model, batch)
        if where:
            network.set_submodule(where, made[k].get_submodule(where))
        with torch.no_grad():
            return nn.functional.cross_entropy(network(batch.x).logits, batch.y).item()

    start = loss()
    rise = {(name, k): max(loss(name, k) - start, 1e-6) if k < 8 else 0.0 for name in names for k in bits}

    def price(way) -> float:
        if of == "size":
            return sum(weights[name] * k for name, k in zip(names, way)) / sum(32 * count for count in weights.values())
        return sum(macs[name] * k * k for name, k in zip(names, way)) / sum(1024 * count for count in macs.values())

    ways = [way for way in itertools.product(bits, repeat=4) if price(way) <= budget]
    method = AdaQuant(**settings, budget=budget, of=of, candidates=bits, **QUICK)
    if not ways:
        least = {"size": "0.0625", "bit_operations": "0.004"}[of]  # 2 / 32, and 2 * 2 / 1024 rounded up
        with pytest.raises(
            ValueError, match=f"budget={budget} cannot be met: the smallest {of} possible is {least} of"
        ):
            method.prepare(model, batch)
        return
    best = min(ways, key=lambda way: sum(rise[name, k] for name, k in zip(names, way)))
    found = {name: layer.quantize_w.bits for name, layer in deploy.layers(method.convert(model, batch)).items()}
    assert found == dict(zip(names, best))


def test_first_and_last_layer_and_what_is_not_quantized_count_with_their_bits():
    """body.0 and head hold 100 and 48 weights, the others 600 and 288: (148 * 8 + 888 * 2) / (1036 * 32) = 0.0893."""
    model, batch = small()
    with pytest.raises(ValueError, match="the smallest size possible is 0.0893 of full precision's, with ends=8 and 2"):
        AdaQuant(budget=0.08).prepare(model, batch)
    with pytest.raises(ValueError, match=r"possible is 0.1965 of"):  # (148 * 32 + 888 * 2) / (1036 * 32)
        AdaQuant(budget=0.08, ends="float").prepare(model, batch)
    made = AdaQuant(budget=0.0893, **QUICK).convert(model, batch)
    assert [layer.quantize_w.bits for layer in deploy.layers(made).values()] == [8, 2, 2, 8]


def test_a_budget_that_cannot_be_met_is_said_before_training():
    with pytest.raises(ConfigError, match="quantization: budget=0.01 cannot be met"):
        trainer(*DEEP, "quantization=adaquant", "quantization.budget=0.01")


@pytest.mark.parametrize("settings", [{"channels": False}, {"candidates": []}, {"range": "lsq"}])
def test_settings_that_do_not_go_together(settings):
    with pytest.raises(ValueError, match="norms=true needs channels=true|candidates is empty|affine=true needs"):
        AdaQuant(**settings)


@pytest.mark.parametrize("y", [torch.randn(128), torch.rand(128, 4)])
def test_targets_that_are_no_class_ids(y):
    model, batch = small()
    batch.y = y
    made = AdaQuant(budget=0.12, candidates=[2, 4, 8], steps=2, tune=20, lr_tune=0.5).convert(model, batch)
    rounded = AdaQuant(budget=0.12, candidates=[2, 4, 8], steps=2, tune=0).convert(model, batch)
    wanted = PTQ().full(model, batch)(batch.x).logits
    errors = [(net(batch.x).logits - wanted).square().mean().item() for net in (made, rounded)]
    assert errors[0] < errors[1]


# ---- tuning


def tuned_by_hand() -> tuple[nn.Module, dict, torch.Tensor]:
    model = Mlp((1,), 2, [1]).double()
    layer = model.body[1]
    with torch.no_grad():
        layer.weight.fill_(1.0), layer.bias.zero_()
    norm = nn.BatchNorm1d(1).double()
    with torch.no_grad():
        norm.weight.fill_(2.0), norm.bias.fill_(1.0)
    return model, {"body.1": norm}, torch.tensor([[1.0], [3.0], [5.0], [7.0]], dtype=torch.float64)


def test_batchnorm_tuned_by_hand():
    """Scale 2 and shift 1, so mean 1 and variance 4 at first; outputs 1, 3, 5, 7 have mean 4 and variance 20 / 3:
    0.9 * 1 + 0.1 * 4 = 1.3 and 0.9 * 4 + 0.1 * 20 / 3 = 4.2667. A weight of 1 and a bias of 0 become
    f = sqrt(4.00001 / 4.26668) and 1 - 1.3 f."""
    model, norms, x = tuned_by_hand()
    made = LSQ(bits=8, inputs="float", ends="same", **GRID, range="minmax").prepare(model, Batch(x, x, x))
    before = made.body[1].codes()
    assert before.decode().item() == pytest.approx(1, abs=1e-12)
    renormalize(made.eval(), norms, x)
    factor = (4.00001 / (3.6 + 2 / 3 + 1e-5)) ** 0.5
    after = made.body[1].codes()
    assert torch.equal(after.values, before.values)
    assert after.decode().item() == pytest.approx(factor, rel=1e-12)
    assert made.body[1].bias.item() == pytest.approx(1 - 1.3 * factor, rel=1e-12)


def test_batchnorm_tuned_as_in_the_reference():
    """450 samples: two batches of 200, and the rest left out; a second layer behind the first, normalised, one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    x = torch.randn(450, 3, dtype=torch.float64) * 2 + 1
    made = LSQ(bits=8, inputs="float", ends="same", **GRID, range="minmax").prepare(model, Batch(x, x, x)).eval()
    norms = {"0": nn.BatchNorm1d(4).double(), "1": nn.BatchNorm1d(2, affine=False).double()}
    with torch.no_grad():
        norms["0"].weight.uniform_(-2, 2), norms["0"].bias.normal_()
    given = [(layer.codes().decode().numpy(), layer.bias.detach().clone().numpy()) for layer in made]
    renormalize(made, norms, x)
    batches = [x[:200].numpy(), x[200:400].numpy()]
    scales = [[norms["0"].weight.detach().numpy(), norms["0"].bias.detach().numpy()], [np.ones(2), np.zeros(2)]]
    for layer, (w, b), parts in zip(made, given, scales, strict=True):
        w, b, batches = plain.normalized(batches, w, b, *parts)
        np.testing.assert_allclose(layer.codes().decode(), w, rtol=1e-9)
        np.testing.assert_allclose(layer.bias.detach(), b, rtol=1e-9)


def test_batchnorm_that_learns_nothing_changes_nothing(monkeypatch):
    monkeypatch.setattr(adaquant, "MOMENTUM", 0.0)
    model, batch = shaken(ResNet((3, 8, 8), 4, depth=8)), a_batch(3, 8, 8)
    batch.x = batch.x.double()
    made, plainly = (AdaQuant(**QUICK | {"norms": norms}).convert(model, batch) for norms in (True, False))
    with torch.no_grad():
        torch.testing.assert_close(made(batch.x).logits, plainly(batch.x).logits, rtol=1e-9, atol=1e-9)


def test_batchnorm_is_tuned_where_it_was_folded():
    model, batch = shaken(ResNet((3, 8, 8), 4, depth=8)), a_batch(3, 8, 8)
    batch.x = batch.x.double()
    made, plainly = (AdaQuant(**QUICK | {"norms": norms}).convert(model, batch) for norms in (True, False))
    for name, layer in deploy.layers(made).items():
        other = plainly.get_submodule(name)
        assert torch.equal(layer.codes().values, other.codes().values)
        assert torch.equal(layer.bias, other.bias) == (name == "head")


def test_one_step_of_the_biases():
    """Inputs in full precision: the divergence is smooth in the biases, and its slopes are measured."""
    torch.manual_seed(0)
    model, x = Mlp((5,), 3, [4, 4]).double(), torch.randn(30, 5, dtype=torch.float64)
    batch = Batch(x, torch.zeros(30, dtype=torch.int64), torch.arange(30))
    settings = {"bits": 2, "inputs": "float", "ends": "same", "steps": 0, "samples": 30}
    before = AdaQuant(**settings, tune=0).convert(model, batch)
    after = AdaQuant(**settings, tune=1, lr_tune=0.2).convert(model, batch)
    wanted = model(x).logits.detach().numpy()

    def divergence() -> float:
        with torch.no_grad():
            return plain.divergence(wanted, before(x).logits.numpy())

    for name, layer in deploy.layers(before).items():
        expected = layer.bias.detach().clone()
        if name != "head":
            for k in range(len(expected)):
                found = []
                for width in (1e-6, -2e-6):
                    with torch.no_grad():
                        layer.bias[k] += width
                    found.append(divergence())
                with torch.no_grad():
                    layer.bias[k] += 1e-6
                expected[k] -= 0.2 * (found[0] - found[1]) / 2e-6
            assert not torch.allclose(expected, layer.bias, rtol=1e-4)
        np.testing.assert_allclose(after.get_submodule(name).bias.detach(), expected, rtol=1e-6, atol=1e-9)


def test_tuning_that_does_harm_is_undone():
    model, batch = small()
    made = AdaQuant(steps=0, tune=3, lr_tune=1e6, norms=False).convert(model, batch)
    plainly = AdaQuant(**QUICK).convert(model, batch)
    assert all(
        torch.equal(a.bias, b.bias) for a, b in zip(deploy.layers(made).values(), deploy.layers(plainly).values())
    )


# ---- a run


@pytest.mark.parametrize("of, budget", [("size", 0.1), ("bit_operations", 0.03)])
def test_a_whole_run_under_a_budget(of, budget, tmp_path):
    words = ["dataset.subset=400", "train.batch_size=32", "train.epochs=3", "model=cnn", "model.widths=[4,8]"]
    words += ["model.hidden=32", "quantization=adaquant", f"quantization.budget={budget}", f"quantization.of={of}"]
    words += ["quantization.candidates=[2,3,4,8]", "quantization.steps=30", "quantization.tune=30"]
    result = run(compose(*words, f"outputs_dir={tmp_path}"), words, say=lambda *_: None)
    found = result["quantization"]
    assert found["fake"] == pytest.approx(found["deployed"], abs=0.003)
    assert found["full"]["test_accuracy"] == result["last"]["test_accuracy"]
    assert found["bytes"] < found["bytes_full"]
    assert all(0 < layer["error"] < 1 for layer in found["layers"])
    if of == "bit_operations":
        assert found["bit_operations"] <= budget * found["bit_operations_full"]
    else:  # the stored bits include a scale of 32 for each output channel, and a zero point where they differ
        weights = [100, 800, 1024, 320]
        assert [layer["weights"] for layer in found["layers"]] == weights
        bits = [layer["bits"] * layer["weights"] for layer in found["layers"]]
        least = sum(bits) - sum(64 * channels for channels in (4, 8, 32, 10))
        assert least <= budget * 32 * sum(weights)
