"""Augmentations against what their papers define, with the draws read off the results and not shared with the code."""

import math

import numpy as np
import pytest
import torch
import yaml
from scipy import stats

from runner.augment import Augment, Draw
from runner.augment.crop_flip import CropFlip
from runner.augment.cutout import Cutout
from runner.augment.mixup import Mixup
from runner.command.build import build
from runner.core.batch import Batch
from runner.core.mistake import ConfigError
from tests.conftest import ROOT

CONF = ROOT / "conf" / "augment"


def draw(n, seed=0, epoch=0, step=0, index=None):
    return Draw(seed, epoch, step, torch.arange(n) if index is None else index)


def pixels(n, shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(1, 256, (n, *shape), dtype=np.uint8))


def batch(x, y):
    return Batch(x, y, torch.arange(len(x)), total=len(x))


# ---- crop and flip


def candidates(image: np.ndarray, padding: int) -> dict:
    """(flipped, row, column) -> every crop of an image padded with zeros, by slicing."""
    height, width = image.shape[1:]
    found = {}
    for flipped in (False, True):
        padded = np.pad(image[:, :, ::-1] if flipped else image, ((0, 0), (padding, padding), (padding, padding)))
        for row in range(2 * padding + 1):
            for column in range(2 * padding + 1):
                found[flipped, row, column] = padded[:, row : row + height, column : column + width]
    return found


def identify(augment, x, drawn):
    """Which crop every sample got; fails where it is none of them or not one alone."""
    out = augment.pixels(x, drawn)
    assert out.shape == x.shape
    assert out.dtype == x.dtype
    choices = []
    for before, after in zip(x.numpy(), out.numpy(), strict=True):
        (choice,) = [key for key, crop in candidates(before, augment.padding).items() if np.array_equal(crop, after)]
        choices.append(choice)
    return choices


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 10)])
@pytest.mark.parametrize("padding", [1, 2, 4])
def test_crop_flip_is_a_crop_of_the_padded_image(shape, padding):
    choices = identify(CropFlip(padding), pixels(60, shape), draw(60))
    assert {flipped for flipped, _, _ in choices} == {False, True}


def test_the_border_is_the_low_end_of_the_inputs_range():
    x = torch.full((50, 1, 4, 4), 0.5)
    for bounds, black in (((-1, 1), -1), ((0, 16), 0), (None, 0)):
        out = CropFlip(2, bounds=bounds).pixels(x, draw(50))
        assert set(out.flatten().tolist()) == {0.5, black}


@pytest.mark.parametrize("option", ["crop_flip", "cutout"])
def test_what_is_for_images_refuses_tables_in_one_line(option):
    node = yaml.safe_load((CONF / f"{option}.yaml").read_text())
    with pytest.raises(ConfigError, match=rf"^augment\.{option}: it is for images, and an input .* \[13\]$"):
        build(node, f"augment.{option}", shape=(13,), bounds=None, classes=3)
    build(node, f"augment.{option}", shape=(3, 32, 32), bounds=(0, 255), classes=10)


def test_crop_flip_is_uniform():
    choices = identify(CropFlip(1), pixels(4000, (1, 3, 4)), draw(4000))
    counts = np.unique([f"{choice}" for choice in choices], return_counts=True)[1]
    assert len(counts) == 18
    assert stats.chisquare(counts).pvalue > 1e-4


def test_crop_without_flip_and_flip_without_crop():
    choices = identify(CropFlip(2, flip=False), pixels(50, (1, 6, 6)), draw(50))
    assert not any(flipped for flipped, _, _ in choices)
    choices = identify(CropFlip(0), pixels(50, (2, 6, 6)), draw(50))
    assert {choice[1:] for choice in choices} == {(0, 0)}
    assert 10 < sum(flipped for flipped, _, _ in choices) < 40
    x = pixels(5, (1, 6, 6))
    assert torch.equal(CropFlip(0, flip=False).pixels(x, draw(5)), x)


def test_crop_flip_of_floats_and_single_images():
    x = pixels(20, (2, 5, 5)).float() / 7
    identify(CropFlip(2), x, draw(20))
    identify(CropFlip(2), x[:1], draw(1))


# ---- cutout


def squares(size, height, width) -> dict:
    """centre -> mask, as the paper has it: a square about a pixel, clipped by the image."""
    found = {}
    for y in range(height):
        for x in range(width):
            mask = np.zeros((height, width), bool)
            mask[max(y - size // 2, 0) : y - size // 2 + size, max(x - size // 2, 0) : x - size // 2 + size] = True
            found[y, x] = mask
    return found


@pytest.mark.parametrize(("size", "height", "width"), [(4, 9, 7), (3, 6, 6), (1, 5, 5), (20, 6, 6)])
def test_cutout_is_a_clipped_square_of_zeros(size, height, width):
    known = squares(size, height, width).values()
    x = torch.rand(80, 3, height, width) + 1
    out = Cutout(size).batch(batch(x, torch.zeros(80, dtype=torch.long)), draw(80)).x
    masks = set()
    for before, after in zip(x.numpy(), out.numpy(), strict=True):
        mask = (after == 0).all(0)
        assert np.array_equal(after, np.where(mask, 0, before))
        assert any(np.array_equal(mask, square) for square in known)
        masks.add(mask.tobytes())
    assert len(masks) > 10 or size == 20


def test_cutout_centres_are_uniform():
    known = {mask.tobytes(): centre for centre, mask in squares(3, 4, 5).items()}
    assert len(known) == 20
    x = torch.ones(4000, 1, 4, 5)
    out = Cutout(3).batch(batch(x, torch.zeros(4000, dtype=torch.long)), draw(4000)).x
    centres = [known[(image[0] == 0).tobytes()] for image in out.numpy()]
    counts = np.unique(centres, axis=0, return_counts=True)[1]
    assert len(counts) == 20
    assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 9), (1, 1)])
def test_a_cutout_that_would_always_leave_nothing_is_refused(height, width):
    """Against the squares themselves: whether any centre leaves a pixel."""
    for size in range(1, 24):
        left = any(not mask.all() for mask in squares(size, height, width).values())
        if left:
            Cutout(size, shape=(3, height, width))
        else:
            with pytest.raises(ValueError, match=f"size={size} covers an image of {height}x{width} wholly"):
                Cutout(size, shape=(3, height, width))


def test_cutout_leaves_the_rest_alone():
    before = batch(torch.ones(4, 1, 6, 6), torch.tensor([0, 1, 2, 3]))
    after = Cutout(2).batch(before, draw(4))
    assert torch.equal(after.y, before.y)
    assert torch.equal(after.index, before.index)
    assert after.total == 4
    assert (before.x == 1).all()  # the given batch is not changed


# ---- mixup


def mixed(n=8, alpha=1.0, step=0, classes=3, y=None):
    """x that names its own sample, so that share and partners can be solved for."""
    x = torch.eye(n, dtype=torch.float64).view(n, 1, 1, n)
    y = torch.arange(n) % classes if y is None else y
    return Mixup(classes=classes, alpha=alpha).batch(batch(x, y), draw(n, step=step)), y


def solve(out):
    """(share, partners) from the mixed identity matrix; fails where it is not one share and a permutation."""
    rows = out.x.view(len(out), -1).numpy()
    others = rows - np.diag(np.diag(rows))
    alone = others.max(1) == 0  # a sample may be its own partner
    share = float(np.diag(rows)[~alone][0])
    partners = np.where(alone, np.arange(len(rows)), others.argmax(1))
    expected = share * np.eye(len(rows)) + (1 - share) * np.eye(len(rows))[partners]
    np.testing.assert_allclose(rows, expected, atol=1e-12)
    assert sorted(partners) == list(range(len(rows)))
    return share, partners


def test_mixup_mixes_inputs_and_targets_alike():
    out, y = mixed(n=9)
    share, partners = solve(out)
    onehot = np.eye(3)[y.numpy()]
    np.testing.assert_allclose(out.y.numpy(), share * onehot + (1 - share) * onehot[partners], atol=1e-6)
    np.testing.assert_allclose(out.y.sum(1), 1, atol=1e-6)
    assert out.y.shape == (9, 3)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_mixup_share_is_beta(alpha):
    shares = [solve(mixed(alpha=alpha, step=step)[0])[0] for step in range(400)]
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 1e-4
    spread = 0.5 / math.sqrt(2 * alpha + 1)  # the standard deviation of Beta(alpha, alpha)
    assert abs(np.mean(shares) - 0.5) < 5 * spread / 20


def test_mixup_takes_other_targets_as_they_are():
    soft = torch.rand(6, 4)
    out, _ = mixed(n=6, y=soft, classes=4)
    share, partners = solve(out)
    np.testing.assert_allclose(out.y, share * soft + (1 - share) * soft[partners], atol=1e-6)
    values = torch.rand(6)
    out, _ = mixed(n=6, y=values)
    share, partners = solve(out)
    np.testing.assert_allclose(out.y, share * values + (1 - share) * values[partners], atol=1e-6)


def test_mixup_changes_with_the_step_alone():
    a, b, c = (mixed(step=step)[0] for step in (3, 3, 4))
    assert torch.equal(a.x, b.x)
    assert not torch.equal(a.x, c.x)


# ---- keyed by the sample


@pytest.mark.parametrize("augment", [CropFlip(3), Cutout(4)])
def test_a_sample_gets_the_same_in_any_batch(augment):
    n = 40
    x = pixels(n, (3, 8, 8)).float()

    def apply(index, epoch=1):
        drawn = draw(len(index), seed=5, epoch=epoch, index=index)
        return augment.batch(batch(augment.pixels(x[index], drawn), index), drawn).x

    together = apply(torch.arange(n))
    order = torch.randperm(n)
    apart = torch.empty_like(together)
    for part in order.split(7):
        apart[part] = apply(part)
    assert torch.equal(together, apart)
    assert not torch.equal(together, apply(torch.arange(n), epoch=2))


def test_global_random_states_are_left_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    CropFlip().pixels(pixels(4, (1, 8, 8)), draw(4))
    Cutout().batch(batch(torch.ones(4, 1, 8, 8), torch.zeros(4)), draw(4))
    mixed()
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


# ---- the options


@pytest.mark.parametrize("option", sorted(path.stem for path in CONF.glob("*.yaml") if path.stem != "none"))
def test_every_option_builds_under_its_own_name(option):
    from runner.command.build import build, check

    package, title, *_ = (CONF / f"{option}.yaml").read_text().splitlines()
    assert package == f"# @package augment.{option}"
    assert " -- " in title
    node = yaml.safe_load((CONF / f"{option}.yaml").read_text())
    check(node, option)
    assert isinstance(build(node, option, classes=10, shape=(1, 28, 28), bounds=(0, 255)), Augment)
