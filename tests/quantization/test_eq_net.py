"""EQ-Net: its penalty, its distillation, and its steps against sub-networks that are written out."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from runner.core import checkpoint
from runner.core.batch import Batch, Output
from runner.core.mistake import ConfigError
from runner.engine.run import run as run_
from runner.loss.ce import CrossEntropy
from runner.quantization import deploy
from runner.quantization.eq_net import Elastic, EQNet, divergence, elastic, guided, moments
from runner.quantization.fold import estimate
from tests.engine.test_distributed import folder, free_port, torchrun
from tests.engine.test_replicas import advance
from tests.federated.made import SKEWED, federation, rounds
from tests.federated.test_side_by_side import both_ways
from tests.quantization.made import DEEP, option, quantized
from tests.reference import quantization_eq_net as plain
from tests.tiny import SMALL, command, compose, trainer

EQ = [*DEEP, "quantization=eq_net"]
BARE = ["quantization.kurtosis=0", "quantization.skewness=0", "quantization.clip=null"]


def first_batch(run) -> Batch:
    return next(run.loader.epoch(0))


# ---- formulas


def test_moments():
    draw = np.random.default_rng(0)
    for w in (draw.normal(size=50), draw.exponential(size=(8, 4)), draw.uniform(size=2000)):
        found = [value.item() for value in moments(torch.tensor(w))]
        np.testing.assert_allclose(found, plain.moments(w.flatten().tolist()), rtol=1e-12)
    assert found[1] == pytest.approx(1.8, abs=0.05)  # the uniform one


def test_moments_by_hand():
    """Mean 1, deviations -1, -1, -1, 3, variance 12 / 3 = 4: z = -1/2 three times and 3/2, so that
    S = (27 - 3) / 8 / 4 = 3/4 and K = (81 + 3) / 16 / 4 = 21/16."""
    assert [value.item() for value in moments(torch.tensor([0.0, 0, 0, 4]))] == pytest.approx([0.75, 1.3125])


def test_equal_weights_have_a_finite_gradient():
    for size in (1, 6):
        w = torch.full((size,), 0.3, requires_grad=True)
        skewness, kurtosis = moments(w)
        (found,) = torch.autograd.grad(skewness + kurtosis, w)
        assert torch.isfinite(skewness + kurtosis) and torch.isfinite(found).all()


def test_divergence():
    draw = np.random.default_rng(0)
    guide, logits = draw.normal(scale=3, size=(2, 6, 5))
    expected = [plain.divergence(a.tolist(), b.tolist()) for a, b in zip(guide, logits, strict=True)]
    np.testing.assert_allclose(divergence(torch.tensor(logits), torch.tensor(guide)), expected, rtol=1e-12)
    assert not divergence(torch.tensor(guide), torch.tensor(guide)).any()
    sure = torch.tensor([[6e4, -6e4], [-6e4, 6e4]], dtype=torch.float16, requires_grad=True)
    far = divergence(sure, sure.detach().flip(0))
    (found,) = torch.autograd.grad(far.sum(), sure)
    assert far.dtype == torch.float32 and (far == 1.2e5).all() and torch.isfinite(found).all()


def test_the_loss_of_each_sample_is_mixed():
    draw = np.random.default_rng(1)
    logits, guide = torch.tensor(draw.normal(size=(2, 6, 5)))
    y = torch.arange(6) % 5
    loss = CrossEntropy()
    loss.__class__ = guided(CrossEntropy)
    loss.guidance = 0.3
    batch = Batch(logits, y, y)
    assert torch.equal(loss(Output(logits, logits), batch), CrossEntropy()(Output(logits, logits), batch))
    found = loss(Output(logits, logits), batch.put(guide=guide))
    expected = [plain.mixture(logits[i].tolist(), guide[i].tolist(), int(y[i]), 0.3) for i in range(6)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_penalty_is_once_in_a_step_and_leaves_out_the_first_layer():
    words = ["quantization.kurtosis=0.2", "quantization.skewness=0.7"]
    run, free = (trainer(*EQ, *more, double=True) for more in (words, BARE))
    layers = [run.model.get_submodule(name).weight.flatten().tolist() for name in ("body.3", "head")]
    expected = plain.penalty(layers, 0.2, 0.7)
    assert expected > 0.01
    for one in (run, free):
        one.hooks.before(one)
    batches = first_batch(run), first_batch(free)
    assert (run.gradient(batches[0]) - free.gradient(batches[1])).item() == pytest.approx(expected, rel=1e-9)
    assert trainer(*EQ, "quantization.ends=float").hooks.named["quantization"].names == ["body.3"]


# ---- the step, against sub-networks that are written out


def on_grid(v, s, bits, signed, elements):
    """LSQ by autograd: the gradient of the rounding is 1, that of s is scaled."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    g = (elements * high) ** -0.5
    s = g * s + ((1 - g) * s).detach()
    c = torch.clamp(v / s, low, high)
    return (c + (c.round() - c).detach()) * s


def written_out(run, x, y, alpha=0.5, rates=(0.015, 1.0)):
    """Loss and gradients of one step, from the run's weights and the bits that it drew."""
    layers = quantized(run.model)
    bits = [2, 3, 4, 5, 6, 7, 8]
    total, guide = 0.0, None
    for k in range(3):
        h = x.flatten(1)
        for name, layer in layers.items():
            w, scales = layer.weight, []
            for part, v, signed in ((layer.quantize_x, h, name == "body.1"), (layer.quantize_w, w, True)):
                elements = v.numel() if v is w else v[0].numel()
                if isinstance(part, Elastic):
                    at = [6, int(part.plan[1]), 0][k]
                    scales.append(on_grid(v, part.scale[at], bits[at], signed, elements))
                else:
                    scales.append(on_grid(v, part.scale, 8, signed, elements))
            h = F.linear(*scales, layer.bias)
            h = h if name == "head" else h.relu()
        loss = F.cross_entropy(h, y)
        if k:
            kl = F.kl_div(h.log_softmax(1), guide.softmax(1), reduction="batchmean")
            loss = alpha * kl + (1 - alpha) * loss
        guide = h.detach()
        total = total + loss
    for name in ("body.3", "head"):
        w = layers[name].weight.flatten()
        z = (w - w.mean()) / w.std()
        total = total + (rates[0] * ((z**4).mean() - 1.8) ** 2 + rates[1] * (z**3).mean() ** 2) / 2
    return total, torch.autograd.grad(total, run.weights.parameters, allow_unused=True)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_is_the_sum_of_its_sub_networks(accumulate):
    run = trainer(*EQ, f"train.accumulate={accumulate}", double=True)
    for step, batch in zip(range(3), run.loader.epoch(0)):
        run.count = step
        run.hooks.before(run)
        loss = run.gradient(batch)
        expected, grads = written_out(run, batch.x, batch.y)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
        for name, found, theirs in zip(run.weights.names, run.weights._grads, grads, strict=True):
            theirs = torch.zeros_like(found) if theirs is None else theirs
            torch.testing.assert_close(found, theirs, rtol=1e-9, atol=1e-12, msg=name)
        run.weights.data.add_(run.weights.grad, alpha=-0.1)  # to other weights, by more than rounding
    raw = run.weights.grad.clone().mul_(50)
    run.weights.grad.copy_(raw)
    run.hooks.gradient(run)
    assert (raw.abs() > 1).any()
    np.testing.assert_array_equal(run.weights.grad, np.clip(raw.numpy(), -1, 1))


def test_sam_perturbs_the_sum():
    run, sam = (trainer(*EQ, f"optim={optim}", double=True) for optim in ("sgd", "sam"))
    batches = first_batch(run), first_batch(sam)
    for one in (run, sam):
        one.hooks.before(one)
    loss = sam.gradient(batches[1])
    assert run.gradient(batches[0]).item() == pytest.approx(loss.item(), rel=1e-12)
    g = run.weights.grad.clone()
    run.weights.add_(g, 0.05 / (g.norm() + 1e-12))
    run.gradient(batches[0])
    assert (run.weights.grad - g).abs().max() > 1e-3
    torch.testing.assert_close(sam.weights.grad, run.weights.grad, rtol=1e-10, atol=1e-13)
    assert {quantizer.turn for quantizer in elastic(sam.model)} == {-1}


def test_perturbations_of_parts_of_a_batch():
    """The mean over halves of the batch of what each gives by itself."""
    run, halves = (trainer(*EQ, "optim=sam", *more, double=True) for more in ([], ["sharpness.m=16"]))
    batch = first_batch(run)
    for one in (run, halves):
        one.hooks.before(one)
    parts = []
    for part in batch.split(16):
        part.total = 0
        run.gradient(part)
        parts.append(run.weights.grad.clone())
    halves.gradient(batch)
    torch.testing.assert_close(halves.weights.grad, (parts[0] + parts[1]) / 2, rtol=1e-10, atol=1e-13)


def test_two_processes_equal_one(tmp_path):
    """They draw the same sub-networks, and each is guided on its own samples. The last batch is one of 10 and 11."""
    words = ["dataset.subset=201", *DEEP[1:], "train.epochs=1", "quantization=eq_net", "optim=sam"]
    for name in ("two", "one"):
        (tmp_path / name).mkdir()
    two = torchrun(*words, cwd=tmp_path / "two", port=free_port())
    assert two.returncode == 0, two.stderr
    assert command(*words, cwd=tmp_path / "one").returncode == 0
    a, b = (checkpoint.load(folder(tmp_path / name) / "last.pt") for name in ("two", "one"))
    for key in a["model"]:
        torch.testing.assert_close(a["model"][key], b["model"][key], rtol=1e-3, atol=1e-4)
    x, y = (json.loads((folder(tmp_path / name) / "result.json").read_text()) for name in ("two", "one"))
    assert x["last"]["train_loss"] == pytest.approx(y["last"]["train_loss"], rel=1e-3)
    assert x["quantization"]["widths"]["8"]["test_nll"] == pytest.approx(
        y["quantization"]["widths"]["8"]["test_nll"], rel=1e-2
    )


@pytest.mark.parametrize("more", [[], ["optim=sam"], ["train.accumulate=2", "loss=poly"]], ids=" ".join)
def test_one_width_is_lsq(more):
    run = trainer(*EQ, *BARE, "quantization.bits=[3]", "quantization.calibration=128", *more, double=True)
    lsq = trainer(*DEEP, "quantization=lsq", "quantization.bits=3", *more, double=True)
    advance(run, 8), advance(lsq, 8)
    mine = dict(run.model.named_parameters())
    for name, value in lsq.model.named_parameters():
        torch.testing.assert_close(mine[name].view_as(value), value, rtol=1e-9, atol=1e-12)


def test_draws_depend_on_the_seed_and_the_step_alone():
    def plans(seed, steps):
        run = trainer(*EQ, "quantization.subnets=4", f"seed={seed}")
        found = []
        for run.count in steps:
            run.hooks.before(run)
            found.append([quantizer.plan.tolist() for quantizer in elastic(run.model)])
        return found

    steps = list(range(40))
    one = plans(0, steps)
    assert plans(0, steps[::-1]) == one[::-1] != plans(1, steps)[::-1]
    (weights, inputs) = zip(*one, strict=True)
    assert weights != inputs
    for plan in (*weights, *inputs):
        assert plan[0] == 6 and plan[3:] == [0, 0]
    assert {index for plan in weights for index in plan[1:3]} == set(range(7))


# ---- BatchNorm, and what is evaluated and deployed


@pytest.mark.parametrize("width", [2, 4, 8])
def test_running_statistics_are_those_of_the_deployed_width(width):
    words = ["dataset.subset=40", "train.batch_size=16", "model=resnet20", "optim=sam", "quantization=eq_net"]
    run = trainer(*words, f"quantization.deploy={width}", double=True)
    batch = first_batch(run)
    alone = EQNet.fixed(run.model, width - 2)
    alone(batch.x)
    run.step(batch)
    buffers = dict(run.model.named_buffers())
    for name, value in alone.named_buffers():
        if "running" in name:
            torch.testing.assert_close(buffers[name], value, rtol=1e-9, atol=1e-12)
        elif "num_batches" in name:
            assert buffers[name] == value == 1


def test_statistics_are_estimated_anew():
    x = torch.randn(600, 3, 4, 4)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5))
    model(torch.randn(8, 3, 4, 4) + 9)
    estimate(model, x)
    parts = np.split(x.numpy(), 3)
    mean, variance = (np.mean([f(part, axis=(0, 2, 3)) for part in parts], 0) for f in (np.mean, np.var))
    np.testing.assert_allclose(model[0].running_mean, mean, atol=1e-6)
    np.testing.assert_allclose(model[0].running_var, variance, rtol=2e-3)  # the unbiased one
    assert not model[0].training and not model[1].training


@pytest.mark.parametrize("channels", ["false", "true"])
def test_a_width_of_the_network_is_that_network_by_itself(channels):
    run = trainer(*EQ, "quantization.ends=same", f"quantization.channels={channels}")
    advance(run, 6)
    model, x = run.model.eval(), first_batch(run).x
    for at, bits in enumerate(range(2, 9)):
        for quantizer in elastic(model):
            quantizer.plan[-1] = at
        fixed = EQNet.fixed(model, at)
        assert not elastic(fixed)
        assert torch.equal(fixed(x).logits, model(x).logits)
        state, stored = deploy.encode(fixed)
        assert torch.equal(deploy.decode(state, fixed)(x).logits, model(x).logits)
        for layer in quantized(model).values():
            assert layer.codes().bits == bits
            assert int(layer.codes().values.max()) < 2**bits
        least = 32 * 16 / 160 if channels == "true" else 0  # one step of 32 bits for each of a layer's 16 rows
        assert all(bits <= value < bits + 1 + least for value in stored.values())


def test_every_width_is_reported_and_has_learned(tmp_path):
    words = [*DEEP[:2], DEEP[-1], "dataset.subset=600", "train.epochs=15", "optim=adamw", "optim.lr=0.005",
             "quantization=eq_net", "quantization.deploy=4"]  # fmt: skip
    found = run_(compose(*words, f"outputs_dir={tmp_path}"), words, say=lambda *_: None)
    report = found["quantization"]
    assert list(report["widths"]) == ["2", "3", "4", "5", "6", "7", "8"]
    assert report["widths"]["4"] == report["fake"]
    assert report["fake"]["test_accuracy"] == report["deployed"]["test_accuracy"] == found["last"]["test_accuracy"]
    accuracies = [measures["test_accuracy"] for measures in report["widths"].values()]
    assert min(accuracies) > 0.5 and len(set(accuracies)) > 3
    assert 4 < report["layers"][1]["bits"] < 4.7 and 8 < report["layers"][0]["bits"] < 8.1


# ---- on clients, and what is refused


def test_clients():
    words = [*SKEWED, "federated=fedavg", "federated.rounds=2", "quantization=eq_net", "quantization.ends=same"]
    both_ways(words)
    run, algorithm = federation(*words, "optim=sam")
    before = run.weights.clone()
    rounds(run, algorithm, 2)
    assert torch.isfinite(run.weights.data).all() and not torch.equal(before, run.weights.data)


@pytest.mark.parametrize(
    "words, message",
    [
        (["quantization.bits=[4,2]"], r"bits=\[4, 2\] must be widths in ascending order"),
        (["quantization.bits=[]"], "must be widths"),
        (["quantization.bits=[2,4]", "quantization.deploy=3"], r"deploy=3 is none of bits=\[2, 4\]"),
        (["model.hidden=[16]"], r"body\.1 and head are the first and the last.*ends=8 bits"),
        (["dataset=diabetes", "loss=cs_ib", "model.hidden=[8,8]"], "guidance is for classes.*set it to 0"),
    ],
)
def test_what_is_refused(words, message):
    with pytest.raises(ConfigError, match=message) as error:
        trainer(*SMALL[:-1], "model.hidden=[16,16]", "quantization=eq_net", *words)
    assert "\n" not in str(error.value)


def test_without_guidance_it_trains_on_numbers():
    words = ["dataset=diabetes", "loss=cs_ib", "model.hidden=[8,8]", "quantization=eq_net", "quantization.guidance=0"]
    run = trainer(*words, "train.batch_size=32", "train.epochs=1")
    before = run.weights.clone()
    advance(run, 2)
    assert torch.isfinite(run.weights.data).all() and not torch.equal(before, run.weights.data)


def test_the_yaml_has_the_papers_numbers():
    made = option("eq_net")
    assert (made.kurtosis, made.skewness, made.guidance, made.clip, made.passes) == (0.015, 1.0, 0.5, 1.0, 3)
    assert made.bits == list(range(2, 9)) and made.ends == 8
