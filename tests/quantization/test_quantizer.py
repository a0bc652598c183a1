"""The uniform quantizer: values, gradients, ranges."""

import itertools

import numpy as np
import pytest
import torch

from runner.quantization.quantizer import Quantizer
from tests.quantization.made import POINTS, UPSTREAM, reference, rounded


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
