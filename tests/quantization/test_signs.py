"""DoReFa, ReSTE, BiPer and LittleBit: few bits, against transcriptions of their papers."""

from importlib import import_module

import numpy as np
import pytest
import torch
from torch import nn

from tests.quantization.made import DEEP, POINTS, UPSTREAM, grads, quantized, reference, rounded
from tests.tiny import trainer

# ---- DoReFa, ReSTE, BiPer


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
