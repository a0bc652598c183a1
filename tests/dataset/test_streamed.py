"""Images that are decoded as they are asked for."""

import numpy as np
import pytest
import torch

from runner.core import keyed
from runner.dataset.images import Encoded, random_resized_crop
from tests.dataset.made import NAMES, STREAM, load, within


def test_streamed_images_are_the_decoded_ones(folder):
    resident, streamed = load(folder, size=4), load(folder, **STREAM)
    assert isinstance(streamed.train.x, Encoded)
    assert (streamed.shape, streamed.names, streamed.classes) == ((3, 4, 4), NAMES, 3)
    for split in ("train", "test"):
        a, b = getattr(resident, split), getattr(streamed, split)
        assert torch.equal(a.x, torch.stack([b.x.get(i, None) for i in range(len(b))]))
        assert torch.equal(a.y, b.y)


def test_streamed_splits_and_damage(folder):
    settings = {"noise": "pair", "noise_rate": 0.5, "subset": 30, "val": 0.2}
    resident, streamed = load(folder, size=4, **settings), load(folder, **STREAM, **settings)
    assert torch.equal(resident.val.y, streamed.val.y)
    assert torch.equal(resident.val.x, torch.stack([streamed.val.x.get(i, None) for i in range(6)]))
    (folder / "file").write_text("")
    with pytest.raises(ValueError, match="keeps a copy"):
        load(folder, **STREAM, cache_dir=str(folder / "file" / "cache"))


def test_random_crops_depend_on_the_seed_alone(folder):
    x = load(folder, random_crop=True, **STREAM).train.x
    before = torch.get_rng_state()
    crops = [x.get(0, seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(crops[0], crops[1])
    assert not torch.equal(crops[0], crops[2])
    assert torch.equal(x.get(0, None), load(folder, size=4).train.x[0])


def test_random_crops_have_the_stated_distribution():
    from PIL import Image

    height, width = 240, 320
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    image = Image.fromarray(np.stack([columns * 255 / width, rows * 255 / height, 0 * rows], -1).astype(np.uint8))
    areas, aspects, flips = [], [], []
    for seed in range(600):
        crop = np.asarray(random_resized_crop(image, 32, keyed.generator(seed, "test")), float)
        # 31 of 32 pixel widths lie between the centres of the outer columns
        w = (crop[:, -1, 0] - crop[:, 0, 0]).mean() / 255 * width * 32 / 31
        h = (crop[-1, :, 1] - crop[0, :, 1]).mean() / 255 * height * 32 / 31
        flips.append(w < 0)
        areas.append(abs(w) * h / (width * height))
        aspects.append(abs(w) / h)
    assert 0.06 < min(areas) < 0.15
    assert 0.85 < max(areas) < 1.02
    assert 0.70 < min(aspects) < 0.80
    assert 1.25 < max(aspects) < 1.42
    assert within(sum(flips), 600, 0.5)
    # what does not fit is drawn again: area a of aspect r has to have a <= r H / W = 0.75 r, so that
    # E[a] = int (0.75^2 r^2 - 0.08^2) / 2 dr/r / int (0.75 r - 0.08) dr/r over [3/4, 4/3] = 0.432
    assert abs(np.mean(areas) - 0.432) < 0.03
