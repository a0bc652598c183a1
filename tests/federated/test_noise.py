"""Noise in the inputs of clients."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from runner.core import keyed
from runner.federated.noise import feature_noise, levels


def test_levels():
    # the code of Li et al. with noise 0.1 and 5 parties: 0.1 / 4 * i
    assert levels(5, 0.1).tolist() == pytest.approx([0, 0.025, 0.05, 0.075, 0.1])
    assert levels(1, 0.1).tolist() == [0]


@pytest.mark.parametrize("shape", [(3, 4, 5), (7,)])  # the second is odd
def test_noise_by_a_loop(shape):
    x = torch.randn(6, *shape)
    scale = torch.tensor([2.0, 3.0, 4.0]).view(3, 1, 1) if len(shape) == 3 else torch.tensor(2.0)
    level, index = torch.rand(6), torch.tensor([5, 0, 977, 1, 2, 60_000])
    count = math.prod(shape)
    half = (count + 1) // 2
    out = feature_noise(x, level, scale, 4, index)
    assert out.dtype == x.dtype
    for sample in range(6):
        u = keyed.uniform(4, "feature noise", 0, index[sample : sample + 1], 2 * half)[0].tolist()
        radius = [math.sqrt(-2 * math.log(1 - value)) for value in u[:half]]
        normal = [r * math.cos(2 * math.pi * value) for r, value in zip(radius, u[half:])]
        normal += [r * math.sin(2 * math.pi * value) for r, value in zip(radius, u[half:])]
        expected = x[sample] + scale * level[sample] * torch.tensor(normal[:count]).view(shape)
        torch.testing.assert_close(out[sample], expected)


def test_noise_belongs_to_the_sample():
    x, level, scale = torch.randn(8, 1, 6, 6), torch.rand(8), torch.tensor(3.0)
    index = torch.arange(8) * 11
    out = feature_noise(x, level, scale, 0, index)
    order = torch.tensor([3, 1, 6])
    assert torch.equal(feature_noise(x[order], level[order], scale, 0, index[order]), out[order])
    assert (feature_noise(x, level, scale, 1, index) != out).float().mean() > 0.99
    rows = feature_noise(x.view(2, 4, 1, 6, 6), level.view(2, 4), scale, 0, index.view(2, 4))  # clients side by side
    assert torch.equal(rows.view_as(out), out)
    one_level = feature_noise(x.view(2, 4, 1, 6, 6), level[:2, None], scale, 0, index.view(2, 4))
    assert torch.equal(one_level[1], feature_noise(x[4:], level[1].expand(4), scale, 0, index[4:]))
    assert torch.equal(feature_noise(x, torch.zeros(()), scale, 0, index), x)
    half = feature_noise(x.half(), level, scale, 0, index)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half, out.half(), atol=2e-2, rtol=0)


def test_noise_is_standard_normal():
    noise = feature_noise(torch.zeros(400, 501), torch.tensor(0.5), torch.tensor(2.0), 0, torch.arange(400)).numpy()
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-4
    # the cosines and the sines of the same radii, neighbouring pixels, neighbouring samples
    for a, b in ((noise[:, :250], noise[:, 251:]), (noise[:, 1:], noise[:, :-1]), (noise[1:], noise[:-1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / math.sqrt(a.size)
