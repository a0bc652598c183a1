"""Image sets in the hub's layout on disk: what is read, what is refused, and what an option says of them."""

import json

import numpy as np
import pytest
import torch

from runner.dataset.images import centre
from tests.dataset.made import NAMES, STREAM, TEST, TRAIN, images, load, png, same, tiny, write


def test_local_files_are_read_in_order(folder):
    dataset = load(folder)
    assert np.array_equal(dataset.train.x.numpy(), TRAIN.transpose(0, 3, 1, 2))
    assert np.array_equal(dataset.test.x.numpy(), TEST.transpose(0, 3, 1, 2))
    assert torch.equal(dataset.train.y, torch.arange(40) % 3)
    assert (dataset.names, dataset.classes, dataset.shape) == (NAMES, 3, (3, 6, 5))
    np.testing.assert_allclose(dataset.mean, TRAIN.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(dataset.std, TRAIN.std((0, 1, 2)), rtol=1e-5)
    json.dumps(dataset.record)


def test_published_constants_are_in_units_of_pixels(folder):
    dataset = load(folder, mean=[0.5, 0.4, 0.3], std=[0.2])
    np.testing.assert_allclose(dataset.mean, [127.5, 102.0, 76.5], rtol=1e-6)
    np.testing.assert_allclose(dataset.std, [51.0] * 3, rtol=1e-6)
    with pytest.raises(ValueError, match="2 values for images of 3 channels"):
        load(folder, mean=[0.5, 0.4], std=[0.2, 0.2])


@pytest.mark.parametrize("below", ["data", "plain_text"])
def test_folders_of_the_hubs_repositories(folder, below):
    root = folder / "data" / "tiny"
    (root / below).mkdir()
    for file in root.glob("*.parquet"):
        file.rename(root / below / file.name)
    assert len(load(folder, config="plain_text").train) == 40


def test_grey_images_and_plain_parquet(tmp_path):
    grey = images(12, (4, 4))
    write(tmp_path / "data" / "tiny" / "train-0.parquet", grey, np.arange(12) % 4, "img", "fine")
    write(tmp_path / "data" / "tiny" / "val-0.parquet", grey[:4], np.arange(4), "img", "fine")
    dataset = load(tmp_path, image="img", label="fine", test_split="val")
    assert np.array_equal(dataset.train.x.numpy()[:, 0], grey)
    assert (dataset.names, dataset.classes, dataset.shape) == (None, 4, (1, 4, 4))
    coloured = load(tmp_path, image="img", label="fine", test_split="val", channels=3)
    assert np.array_equal(coloured.train.x.numpy(), np.repeat(grey[:, None], 3, 1))


def test_labels_may_be_words(tmp_path):
    words = ["dog", "cat", "emu", "cat", "dog", "emu"]
    write(tmp_path / "data" / "tiny" / "train-0.parquet", images(6, (4, 4)), words)
    write(tmp_path / "data" / "tiny" / "test-0.parquet", images(2, (4, 4)), ["emu", "cat"])
    dataset = load(tmp_path)
    assert dataset.names == ["cat", "dog", "emu"]
    assert dataset.train.y.tolist() == [1, 0, 2, 0, 1, 2]
    assert dataset.test.y.tolist() == [2, 0]


def test_without_a_test_split_a_fixed_fifth_is_one(folder):
    a, b = (load(folder, test_split=None, seed=seed, val=0.1) for seed in (0, 1))
    assert torch.equal(a.test.x, b.test.x)
    assert len(a.test) == 3 + 3 + 3  # a fifth of 14, of 13 and of 13, rounded
    everything = torch.cat([a.train.x, a.val.x, a.test.x]).flatten(1).tolist()
    assert sorted(everything) == sorted(TRAIN.transpose(0, 3, 1, 2).reshape(40, -1).tolist())


@pytest.mark.parametrize("shape", [(30, 20), (21, 33), (16, 16), (8, 13)])
@pytest.mark.parametrize(("size", "resize"), [(12, 12), (12, 16)])
def test_resized_centre_is_torchvisions(shape, size, resize):
    pytest.importorskip("torchvision")
    from PIL import Image
    from torchvision.transforms import functional

    image = Image.fromarray(images(1, (*shape, 3))[0])
    expected = functional.center_crop(functional.resize(image, resize), [size, size])
    assert np.array_equal(np.asarray(centre(image, size, resize)), np.asarray(expected))


def test_sizes_must_agree_or_be_given(tmp_path):
    mixed = [images(1, (6, 5))[0], images(1, (5, 6))[0]]
    for split in ("train", "test"):
        write(tmp_path / "data" / "tiny" / f"{split}-0.parquet", mixed, [0, 1])
    with pytest.raises(ValueError, match="image 1 of split 'train' of 'tiny' is L 6x5 and the first is L 5x6.*size"):
        load(tmp_path)
    assert load(tmp_path, size=4).shape == (1, 4, 4)


def test_channels_must_agree_or_be_given(tmp_path):
    for split in ("train", "test"):
        write(
            tmp_path / "data" / "tiny" / f"{split}-0.parquet", [images(1, (4, 4))[0], images(1, (4, 4, 3))[0]], [0, 1]
        )
    with pytest.raises(ValueError, match="set dataset.channels"):
        load(tmp_path)
    assert load(tmp_path, channels=3).shape == (3, 4, 4)


def test_what_is_missing_is_named(folder, monkeypatch):
    import datasets

    def unreachable(*_, **__):
        raise RuntimeError("no route\nat all")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ValueError, match="cannot find") as error:
        load(folder, name="other")
    for word in (
        str(folder / "data" / "other" / "train-*.parquet"),
        "no route",
        "someone/tiny",
        "RUNNER_DATA",
        "data_dir",
    ):
        assert word in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="<data_dir>/tiny/train"):
        load(folder, data_dir=None)


def test_sets_of_the_hub(folder, monkeypatch):
    import datasets

    local, lazy = load(folder), load(folder, **STREAM)
    asked = []

    def hub(id, config, split):
        asked.append((id, config, split))
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
        pixels = {"train": TRAIN, "test": TEST}[split]
        rows = {"image": [{"bytes": png(p)} for p in pixels], "label": [i % 3 for i in range(len(pixels))]}
        return datasets.Dataset.from_dict(rows, features=features)

    monkeypatch.setattr(datasets, "load_dataset", hub)
    settings = {"data_dir": None, "config": "plain"}
    assert same(local, load(folder, **settings))
    assert asked == [("someone/tiny", "plain", "train"), ("someone/tiny", "plain", "test")]
    streamed = load(folder, **STREAM, **settings)
    assert torch.equal(streamed.train.x.get(7, None), lazy.train.x.get(7, None))
    assert (streamed.names, streamed.train.y.tolist()) == (NAMES, local.train.y.tolist())
    asked.clear()
    assert same(local, load(folder, **settings))  # the cache does
    assert not asked


def test_incomplete_copies_are_refused(folder):
    (folder / "data" / "tiny" / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(ValueError, match="1 of 2 files of split 'train'"):
        load(folder)
    (folder / "data" / "tiny" / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(ValueError, match=r"no train-\*\.parquet"):
        load(folder)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"image": "img"}, "no column 'img' but image, label: set dataset.image"),
        ({"label": "fine"}, "no column 'fine' but image, label: set dataset.label"),
        ({"label": "image"}, "holds dict, not one class id"),
        ({"image": "label"}, "image 0 of split 'train' of 'tiny' cannot be decoded"),
    ],
)
def test_wrong_columns_are_named(folder, settings, words):
    with pytest.raises(ValueError, match=words):
        load(folder, **settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"id": None}, "dataset.id"),
        ({"mean": [0.5]}, "go together"),
        ({"mean": [125.3], "std": [0.2]}, r"mean=\[125.3\] .* in units of 0..1"),
        ({"mean": [0.5], "std": [63.0]}, "in units of 0..1"),
        ({"mean": [0.5], "std": [0.0]}, "std above 0"),
        ({"mean": [0.5], "std": [float("nan")]}, "in units of 0..1"),
        ({"test_split": "train"}, "are both 'train', which would test on what was trained on"),
        ({"stream": True}, "needs dataset.size"),
        ({"random_crop": True}, "stream=true"),
        ({"resize": 8}, "dataset.size"),
        ({"resize": 8, "size": 9}, "dataset.size"),
    ],
)
def test_wrong_hub_settings_are_found_before_loading(folder, settings, words):
    with pytest.raises(ValueError, match=words):
        tiny(folder, **settings)


def test_broken_image_is_named(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    whole_image = png(images(1, (32, 32))[0])
    for split in ("train", "test"):
        write(tmp_path / "data" / "tiny" / f"{split}-0.parquet", images(3, (32, 32)), [0, 1, 0])
    cells = [{"bytes": whole_image, "path": None}, {"bytes": whole_image[:300], "path": None}]
    pq.write_table(pa.table({"image": cells, "label": [0, 1]}), tmp_path / "data" / "tiny" / "train-0.parquet")
    with pytest.raises(ValueError, match="image 1 of split 'train' of 'tiny' cannot be decoded"):
        load(tmp_path)
