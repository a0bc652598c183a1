"""GAQAT and self-compression: what is learnt of steps and of bits."""

from importlib import import_module

import numpy as np
import pytest
import torch
from torch import nn

from runner.core.batch import Batch, Output
from runner.core.mistake import ConfigError
from runner.quantization import deploy
from runner.quantization.self_compression import SelfCompression
from tests.engine.test_replicas import advance, assert_pack_equals_alone, doubled
from tests.quantization.made import POINTS, UPSTREAM, grads, quantized, reference, rounded
from tests.tiny import SMALL, trainer

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
