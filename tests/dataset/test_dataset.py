"""Data sets: what is loaded, found, cached, split and damaged."""

import errno
import io
import json
import logging
import math
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from runner.core import keyed
from runner.dataset import Dataset, Split, statistics
from runner.dataset.digits import Digits
from runner.dataset.hub import Hub
from runner.dataset.images import Encoded, centre, random_resized_crop
from tests.conftest import ROOT

CONF = ROOT / "conf" / "dataset"


class Numbered(Dataset):
    """Sample i of the training set has input i, so that what was done to it can be read off. Labels as given."""

    shape = (1,)
    mean, std = torch.zeros(1), torch.ones(1)

    def __init__(self, labels, **settings):
        self.labels = torch.as_tensor(labels)
        super().__init__(**settings)

    def load(self):
        if self.task == "classes":
            self.classes = int(self.labels.max()) + 1
        else:
            self.classes = 1
        x = torch.arange(len(self.labels)).float()[:, None]
        return Split(x, self.labels.clone()), Split(x[:50], self.labels[:50].clone())


class Numbers(Numbered):
    task = "regression"


def prepared(labels, **settings):
    dataset = Numbered(labels, **settings)
    dataset.prepare()
    return dataset


def positions(split):
    return split.x[:, 0].long()


def whole(dataset):
    """Labels of training and validation part together, in the original order, and the original positions."""
    where = torch.cat([positions(dataset.train), positions(dataset.val)])
    order = where.argsort()
    return torch.cat([dataset.train.y, dataset.val.y])[order], where[order]


BALANCED = torch.arange(4000) % 10


# ---- splits


def test_validation_is_a_partition():
    dataset = prepared(BALANCED, val=0.15)
    assert len(dataset.val) == 600
    assert len(dataset.train) == 3400
    labels, where = whole(dataset)
    assert torch.equal(where, torch.arange(4000))
    assert torch.equal(labels, BALANCED)


def test_no_validation():
    dataset = prepared(BALANCED, val=0.0)
    assert dataset.val is None
    assert torch.equal(positions(dataset.train), torch.arange(4000))
    assert dataset.record["val"] == 0


def test_splits_depend_on_the_seed_alone():
    a, b, c = prepared(BALANCED, seed=1), prepared(BALANCED, seed=1), prepared(BALANCED, seed=2)
    assert torch.equal(a.val.x, b.val.x)
    assert not torch.equal(a.val.x, c.val.x)


def test_damage_seed_holds_the_damage_but_not_the_split():
    settings = {"noise": "symmetric", "noise_rate": 0.4, "imbalance": 5.0, "subset": 700, "damage_seed": 9}
    a, b = prepared(BALANCED, seed=1, **settings), prepared(BALANCED, seed=2, **settings)
    assert all(torch.equal(left, right) for left, right in zip(whole(a), whole(b), strict=True))
    assert not torch.equal(a.val.x, b.val.x)
    other = prepared(BALANCED, seed=1, **settings | {"damage_seed": 10})
    assert not torch.equal(whole(a)[1], whole(other)[1])


def test_draws_are_independent():
    clean = prepared(BALANCED, subset=1000)
    noisy = prepared(BALANCED, subset=1000, noise="pair", noise_rate=0.5)
    assert torch.equal(clean.train.x, noisy.train.x)
    assert torch.equal(clean.val.x, noisy.val.x)
    # the same samples are hit whatever is held out
    other = prepared(BALANCED, subset=1000, noise="pair", noise_rate=0.5, val=0.3)
    assert torch.equal(whole(noisy)[0], whole(other)[0])


def test_subset_is_drawn_before_validation():
    dataset = prepared(BALANCED, subset=200, val=0.25)
    assert (len(dataset.train), len(dataset.val)) == (150, 50)
    assert len(set(whole(dataset)[1].tolist())) == 200


def test_domain_follows():
    class Domains(Numbered):
        def load(self):
            train, test = super().load()
            return Split(train.x, train.y, train.x[:, 0].long() * 3), test

    dataset = Domains(BALANCED, subset=100, noise="pair", noise_rate=0.1)
    dataset.prepare()
    assert torch.equal(dataset.train.domain, positions(dataset.train) * 3)


def test_context():
    dataset = prepared([0, 0, 0, 1, 1, 2], val=0.0)
    expected = {"shape": (1,), "bounds": None, "classes": 3, "samples": 6, "class_counts": [3, 2, 1], "bag": 1}
    assert dataset.context == expected
    regression = Numbers([0.5, 1.5, 2.5], val=0.0)
    regression.prepare()
    assert regression.context["class_counts"] is None


# ---- noise


def within(count, n, p):
    """A binomial count is within five standard deviations: wrong once in two million, and the seeds are fixed."""
    return abs(count - n * p) < 5 * math.sqrt(n * p * (1 - p))


MANY = torch.arange(20000) % 10


def noisy(kind, rate, **settings):
    return whole(prepared(MANY, noise=kind, noise_rate=rate, **settings))[0]


def test_symmetric():
    y = noisy("symmetric", 0.5)
    assert within(int((y != MANY).sum()), 20000, 0.5 * 0.9)
    for label in range(10):  # every class, the true one included, receives a tenth of the redrawn
        assert within(int((y[MANY == 3] == label).sum()), 2000, 0.05 + 0.5 * (label == 3))


def test_symmetric_other():
    y = noisy("symmetric_other", 0.5)
    assert within(int((y != MANY).sum()), 20000, 0.5)
    for label in set(range(10)) - {3}:
        assert within(int((y[MANY == 3] == label).sum()), 2000, 0.5 / 9)


def test_symmetric_other_at_one_changes_every_label():
    assert (noisy("symmetric_other", 1.0) != MANY).all()


def test_pair():
    y = noisy("pair", 0.3)
    changed = y != MANY
    assert within(int(changed.sum()), 20000, 0.3)
    assert torch.equal(y[changed], (MANY[changed] + 1) % 10)
    assert (y[changed & (MANY == 9)] == 0).all()


def test_asymmetric():
    mapping = {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}
    y = noisy("asymmetric", 0.4, asymmetric=mapping)
    for label in range(10):
        here = y[label == MANY]
        changed = here[here != label]
        if label in mapping:
            assert within(len(changed), 2000, 0.4)
            assert (changed == mapping[label]).all()
        else:
            assert len(changed) == 0


def test_rate_zero_changes_nothing():
    assert torch.equal(noisy("symmetric", 0.0), MANY)


@pytest.mark.parametrize("kind", ["symmetric", "pair"])
def test_record_says_what_happened(kind):
    dataset = prepared(MANY, noise=kind, noise_rate=0.25, seed=3)
    truth = {
        name: int((split.y != MANY[positions(split)]).sum())
        for name, split in vars(dataset).items()
        if name in ("train", "val")
    }
    facts = json.loads(json.dumps(dataset.record))["noise"]
    assert (facts["kind"], facts["asked"]) == (kind, 0.25)
    assert facts["changed_train"] == truth["train"] > 0
    assert facts["changed_val"] == truth["val"] > 0  # validation labels are as noisy
    assert facts["changed"] == truth["train"] + truth["val"]
    assert facts["realised"] == facts["changed"] / 20000
    assert dataset.record["class_counts"] == [int((dataset.train.y == label).sum()) for label in range(10)]


def test_test_split_is_never_damaged():
    dataset = prepared(MANY, noise="symmetric_other", noise_rate=1.0, imbalance=10.0, subset=500)
    assert torch.equal(dataset.test.y, MANY[:50])


# ---- long tail


def test_long_tail_has_the_published_class_sizes():
    labels = torch.arange(50000) % 10
    dataset = prepared(labels, imbalance=100.0, val=0.0)
    # CIFAR-10-LT of Cao et al. 2019 at ratio 100
    assert dataset.class_counts == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert dataset.record["imbalance"] == {"asked": 100.0, "realised": 100.0}
    hundred = prepared(torch.arange(50000) % 100, imbalance=100.0, val=0.0)
    assert len(hundred.train) == 10847  # CIFAR-100-LT
    assert (hundred.class_counts[0], hundred.class_counts[-1]) == (500, 5)


def test_long_tail_of_uneven_classes_keeps_the_ratio():
    labels = torch.tensor([0] * 90 + [1] * 100 + [2] * 200)
    # formula: shares 1, 0.5, 0.25; class 0 limits n_max to 90
    assert prepared(labels, imbalance=4.0, val=0.0).class_counts == [90, 45, 22]
    labels = torch.tensor([0] * 90 + [1] * 20 + [2] * 200)
    assert prepared(labels, imbalance=4.0, val=0.0).class_counts == [40, 20, 10]


# ---- settings that do not fit


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        (Numbered, {"noise_rate": 0.2}, "noise=symmetric"),
        (Numbered, {"noise": "asymmetric", "noise_rate": 0.2}, "pair"),
        (Numbers, {"noise": "symmetric", "noise_rate": 0.2}, "regression"),
        (Numbers, {"imbalance": 2.0}, "regression"),
    ],
)
def test_wrong_settings_are_found_before_loading(kind, settings, words):
    with pytest.raises(ValueError, match=words) as error:
        kind(BALANCED, **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"subset": 4001}, "subset=4001 is more than the 4000"),
        ({"val": 1.0}, "no training sample"),
        ({"val": 0.0001}, "no validation sample"),
        ({"noise": "asymmetric", "asymmetric": {3: 10}}, "maps 3 to 10, and the classes are 0..9"),
    ],
)
def test_settings_that_do_not_fit_the_data(settings, words):
    with pytest.raises(ValueError, match=words) as error:
        prepared(BALANCED, **settings)
    assert "\n" not in str(error.value)


def test_labels_must_be_classes():
    dataset = Numbered(torch.tensor([0, 1, -1, 2]), val=0.0)
    with pytest.raises(ValueError, match=r"the training split of .*: labels must be in 0\.\.2.*row 2 is -1"):
        dataset.prepare()
    with pytest.raises(ValueError, match="class 1 has none"):
        prepared([0, 0, 2, 2], val=0.0, imbalance=2.0)


def test_statistics_are_numpys():
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2300, 3, 5, 4), dtype=np.uint8))
    mean, std = statistics(x)
    np.testing.assert_allclose(mean, x.numpy().mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(std, x.numpy().std((0, 2, 3)), rtol=1e-6)


# ---- digits


def test_digits_are_scikit_learns():
    reference = pytest.importorskip("sklearn.datasets").load_digits()
    dataset = Digits(val=0.1)
    dataset.prepare()
    parts = (dataset.train, dataset.val, dataset.test)
    rows = np.concatenate([np.c_[part.x.view(len(part), 64).numpy(), part.y.numpy()] for part in parts])
    expected = np.c_[reference.data, reference.target]
    assert rows.shape == (1797, 65)
    assert sorted(map(tuple, rows.astype(int))) == sorted(map(tuple, expected.astype(int)))
    assert dataset.train.x.dtype == torch.uint8
    assert dataset.shape == (1, 8, 8)
    pixels = np.concatenate([dataset.train.x.numpy(), dataset.val.x.numpy()])
    np.testing.assert_allclose([dataset.mean.item(), dataset.std.item()], [pixels.mean(), pixels.std()], rtol=1e-5)


def test_digits_test_split_is_a_fixed_stratified_fifth():
    tests = []
    for seed in (0, 5):
        dataset = Digits(seed=seed)
        dataset.prepare()
        tests.append(dataset.test)
    assert torch.equal(tests[0].x, tests[1].x)
    assert len(tests[0]) == 359
    counts = np.bincount(pytest.importorskip("sklearn.datasets").load_digits().target)
    assert np.abs(np.bincount(tests[0].y.numpy()) - counts / 5).max() <= 0.5


# ---- sets in the hub's layout


def png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "png")
    return out.getvalue()


def write(path: Path, pixels, labels, image="image", label="label", names=None):
    """A parquet file as the hub writes them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    cells = [{"bytes": png(p), "path": None} for p in pixels]
    table = pa.table(
        {image: pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())])), label: labels}
    )
    if names:
        features = {image: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def images(n, shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


TRAIN, TEST = images(40, (6, 5, 3)), images(10, (6, 5, 3), 1)
NAMES = ["ant", "bee", "cat"]


@pytest.fixture
def folder(tmp_path):
    """A small colour set, `tiny`, in two training files."""
    y = np.arange(40) % 3
    write(tmp_path / "data" / "tiny" / "train-00000-of-00002.parquet", TRAIN[:25], y[:25], names=NAMES)
    write(tmp_path / "data" / "tiny" / "train-00001-of-00002.parquet", TRAIN[25:], y[25:], names=NAMES)
    write(tmp_path / "data" / "tiny" / "test-00000-of-00001.parquet", TEST, np.arange(10) % 3, names=NAMES)
    return tmp_path


def tiny(folder, **settings):
    paths = {"data_dir": str(folder / "data"), "cache_dir": str(folder / "cache")}
    return Hub(**{"id": "someone/tiny", "val": 0.0} | paths | settings)


def load(folder, **settings):
    dataset = tiny(folder, **settings)
    dataset.prepare()
    return dataset


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


# ---- the cache


def never(*_):
    raise AssertionError("decoded again")


def entry(folder):
    (found,) = [path for path in (folder / "cache").iterdir() if path.is_dir()]
    return found


def same(a, b):
    parts = [(a.train.x, b.train.x), (a.train.y, b.train.y), (a.test.x, b.test.x), (a.test.y, b.test.y)]
    parts += [(a.mean, b.mean), (a.std, b.std)]
    return all(torch.equal(x, y) for x, y in parts) and (a.names, a.record) == (b.names, b.record)


def test_second_start_reads_the_cache(folder, monkeypatch):
    first = load(folder)
    monkeypatch.setattr(Hub, "_decode", never)
    assert same(first, load(folder))


def test_changed_source_or_settings_are_decoded_again(folder):
    first = load(folder)
    assert load(folder, size=4).shape == (3, 4, 4)
    path = folder / "data" / "tiny" / "test-00000-of-00001.parquet"
    before = path.stat().st_mtime_ns
    write(path, TEST[::-1], np.arange(10) % 3, names=NAMES)
    os.utime(path, ns=(before + 10**9,) * 2)  # later, however coarse the clock of the file system is
    second = load(folder)
    assert np.array_equal(second.test.x.numpy(), TEST[::-1].transpose(0, 3, 1, 2))
    assert first.fingerprint != second.fingerprint


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "missing", "meta", "half meta", "other size"])
def test_damaged_cache_is_made_again(folder, caplog, damage):
    first = load(folder)
    pixels, meta = entry(folder) / "train_x.npy", entry(folder) / "meta.json"
    match damage:
        case "truncated":
            pixels.write_bytes(pixels.read_bytes()[:-100])
        case "empty":
            pixels.write_bytes(b"")
        case "garbage":
            pixels.write_bytes(b"\0" * 500)
        case "missing":
            pixels.unlink()
        case "meta":
            meta.write_text("{")
        case "half meta":
            meta.write_text(json.dumps({"shapes": {}}))
        case "other size":
            np.save(pixels, np.zeros((39, 3, 6, 5), np.uint8))
    with caplog.at_level(logging.WARNING):
        assert same(first, load(folder))
    assert all("damaged" in record.message and "\n" not in record.message for record in caplog.records)
    assert caplog.records
    caplog.clear()
    assert same(first, load(folder))
    assert not caplog.records


@pytest.mark.parametrize("fault", ["disk full", "no folder"])
def test_without_a_cache_the_run_goes_on(folder, monkeypatch, caplog, fault):
    expected = load(folder)
    settings = {"cache_dir": str(folder / "elsewhere")}
    if fault == "no folder":
        (folder / "file").write_text("")
        settings = {"cache_dir": str(folder / "file" / "cache")}
    else:

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(np, "save", full)
    with caplog.at_level(logging.WARNING):
        assert same(expected, load(folder, **settings))
    (record,) = caplog.records
    assert "going on without" in record.message
    assert "\n" not in record.message
    if fault == "disk full":
        assert not [path for path in (folder / "elsewhere").iterdir() if path.is_dir()]


def _job(folder, barrier, results):
    decode = Hub._decode

    def counted(self, files):
        with open(folder / "decoded", "a") as out:
            out.write("x")
        time.sleep(0.3)  # the other job is waiting by now
        return decode(self, files)

    Hub._decode = counted
    barrier.wait()
    dataset = load(folder)
    results.put((dataset.fingerprint, int(dataset.train.x.sum()), len(dataset.test)))


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_concurrent_jobs_decode_once(folder):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    jobs = [context.Process(target=_job, args=(folder, barrier, results), daemon=True) for _ in range(2)]
    for job in jobs:
        job.start()
    found = [results.get(timeout=60) for _ in jobs]
    for job in jobs:
        job.join(60)
        assert job.exitcode == 0
    assert found[0] == found[1]
    assert found[0][1:] == (int(TRAIN.sum(dtype=np.int64)), 10)
    assert (folder / "decoded").read_text() == "x"
    assert not list((folder / "cache").glob("*.partial"))


def test_warm_start_imports_nothing_heavy(folder):
    load(folder)
    code = f"""
import sys
from runner.dataset.digits import Digits
from runner.dataset.hub import Hub
Digits().prepare()
Hub(id="someone/tiny", val=0.0, data_dir={str(folder / "data")!r}, cache_dir={str(folder / "cache")!r}).prepare()
print(sorted({{"sklearn", "datasets", "PIL", "pandas", "pyarrow", "torchvision", "filelock"}} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=CONF.parent.parent, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    # torch itself may import filelock
    assert result.stdout.strip() in ("[]", "['filelock']")


# ---- streamed


STREAM = {"stream": True, "size": 4, "mean": [0.5], "std": [0.25]}


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


# ---- the options


def options():
    return sorted(path.stem for path in CONF.glob("*.yaml") if not path.stem.startswith("_"))


@pytest.mark.parametrize("option", options())
def test_every_option_lists_every_setting(option):
    from runner.command.build import CONTEXT, check, locate, parameters

    node = yaml.safe_load((CONF / "_settings.yaml").read_text()) | yaml.safe_load((CONF / f"{option}.yaml").read_text())
    assert node.pop("defaults") == ["_settings", "_self_"]
    check(node, "dataset")
    known, open_ended = parameters(locate(node["_target_"], "dataset"))
    assert not open_ended
    assert set(node) - {"_target_"} == set(known) - CONTEXT
    assert (CONF / f"{option}.yaml").read_text().startswith("# ")
    for name in yaml.safe_load((CONF / "_settings.yaml").read_text()):
        if name != "asymmetric":
            assert node[name] == known[name].default


def published(option):
    return yaml.safe_load((CONF / f"{option}.yaml").read_text())["asymmetric"]


def test_asymmetric_maps_are_the_published_ones():
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    pairs = ["truck automobile", "bird airplane", "deer horse", "cat dog", "dog cat"]
    assert published("cifar10") == {names.index(a): names.index(b) for a, b in map(str.split, pairs)}
    assert published("mnist") == {2: 7, 3: 8, 7: 1, 5: 6, 6: 5}


SUPERCLASSES = """beaver dolphin otter seal whale
aquarium_fish flatfish ray shark trout
orchid poppy rose sunflower tulip
bottle bowl can cup plate
apple mushroom orange pear sweet_pepper
clock keyboard lamp telephone television
bed chair couch table wardrobe
bee beetle butterfly caterpillar cockroach
bear leopard lion tiger wolf
bridge castle house road skyscraper
cloud forest mountain plain sea
camel cattle chimpanzee elephant kangaroo
fox porcupine possum raccoon skunk
crab lobster snail spider worm
baby boy girl man woman
crocodile dinosaur lizard snake turtle
hamster mouse rabbit shrew squirrel
maple_tree oak_tree palm_tree pine_tree willow_tree
bicycle bus motorcycle pickup_truck train
lawn_mower rocket streetcar tank tractor"""


def test_cifar100_map_stays_within_superclasses():
    groups = [line.split() for line in SUPERCLASSES.splitlines()]
    names = sorted(name for group in groups for name in group)
    assert len(names) == 100
    mapping = {names[a]: names[b] for a, b in published("cifar100").items()}
    assert len(mapping) == 100
    for group in groups:
        # next in alphabetical order, which is the order of the class ids, and the last to the first
        assert [mapping[name] for name in group] == group[1:] + group[:1]


# ---- real data


def real(name, data_dir, cache, **settings):
    if not (Path(data_dir) / name).is_dir():
        pytest.skip(f"no {name} in {data_dir}")
    node = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    node = {key: value for key, value in node.items() if key not in ("_target_", "defaults")}
    dataset = Hub(**node | settings, data_dir=data_dir, cache_dir=str(cache), val=0.1)
    dataset.prepare()
    return dataset


def test_mnist(data_dir, tmp_path):
    dataset = real("mnist", data_dir, tmp_path)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (54000, 6000, 10000)
    assert (dataset.shape, dataset.classes, dataset.names) == ((1, 28, 28), 10, list("0123456789"))
    labels = torch.cat([dataset.train.y, dataset.val.y])
    assert torch.bincount(labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    mean, std = statistics(torch.cat([dataset.train.x, dataset.val.x]))
    np.testing.assert_allclose([dataset.mean / 255, dataset.std / 255], [mean / 255, std / 255], atol=5e-5)


def test_cifar10(data_dir, tmp_path):
    dataset = real("cifar10", data_dir, tmp_path, stream=True, size=32)  # decoding 60,000 images takes too long here
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (45000, 5000, 10000)
    assert (dataset.shape, dataset.classes, dataset.names[9]) == ((3, 32, 32), 10, "truck")
    assert torch.bincount(torch.cat([dataset.train.y, dataset.val.y])).tolist() == [5000] * 10
    mean, std = statistics(torch.stack([dataset.train.x.get(i, None) for i in range(0, 45000, 15)]))
    np.testing.assert_allclose([dataset.mean / 255, dataset.std / 255], [mean / 255, std / 255], atol=0.01)
