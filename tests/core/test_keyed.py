"""Keyed randomness: what it depends on, and that it is uniform."""

import numpy as np
import torch

from runner.core import keyed


def splitmix64(x: int) -> int:
    """The published finaliser, on Python integers."""
    mask = (1 << 64) - 1
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


VALUES = [0, 1, 2**63, 2**64 - 1, 0x0123456789ABCDEF]


def test_both_mixers_are_splitmix64():
    expected = [splitmix64(value) for value in VALUES]
    ours = keyed._mix_torch(torch.tensor([keyed._signed(value) for value in VALUES]))
    assert [value & ((1 << 64) - 1) for value in ours.tolist()] == expected
    assert keyed._mix_numpy(np.array(VALUES, dtype=np.uint64)).tolist() == expected


def test_other_devices_draw_the_same_numbers():
    index = torch.arange(1000) * 977
    on_gpu = keyed._uniform_torch(2**64 - 5, index, 3)
    on_cpu = keyed._uniform_numpy(2**64 - 5, index.numpy(), 3)
    assert torch.equal(on_gpu, torch.from_numpy(on_cpu))


def test_a_sample_has_its_own_numbers_in_any_batch():
    whole = keyed.uniform(1, "crop", 3, torch.arange(100), 4)
    part = keyed.uniform(1, "crop", 3, torch.tensor([42, 7]), 4)
    assert torch.equal(part, whole[[42, 7]])
    for other in (keyed.uniform(2, "crop", 3, torch.arange(100), 4), keyed.uniform(1, "crop", 4, torch.arange(100), 4),
                  keyed.uniform(1, "flip", 3, torch.arange(100), 4)):  # fmt: skip
        assert (other != whole).float().mean() > 0.99


def test_uniform_and_uncorrelated():
    u = keyed.uniform(0, "x", 0, torch.arange(200_000), 3).double().numpy()
    assert u.min() >= 0
    assert u.max() < 1
    counts = np.histogram(u[:, 0], bins=100, range=(0, 1))[0]
    chi2 = ((counts - 2000) ** 2 / 2000).sum()
    assert 53 < chi2 < 160  # 99 degrees of freedom: outside with probability below 1e-4
    corr = np.corrcoef(np.vstack([u.T, np.roll(u[:, 0], 1)]))
    assert np.abs(corr - np.eye(4)).max() < 5 / np.sqrt(200_000)


def test_generators_are_independent_of_each_other():
    a = keyed.generator(0, "order", 1).permutation(1000)
    b = keyed.generator(0, "order", 1).permutation(1000)
    c = keyed.generator(0, "order", 2).permutation(1000)
    assert (a == b).all()
    assert (a != c).mean() > 0.9
