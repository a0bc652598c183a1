"""Data where people have them: folders of images, tables, NumPy arrays, torchvision's downloads."""

import struct

import numpy as np
import pytest
import torch
from PIL import Image

from runner.dataset.arrays import Arrays
from runner.dataset.image_folder import ImageFolder
from runner.dataset.table_file import TableFile
from runner.dataset.torchvision_files import TorchvisionFiles
from tests.tiny import trainer


def ready(made):
    made.prepare()
    return made


def pixels(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# ---- folders


@pytest.fixture
def folders(tmp_path):
    """Three classes with 5, 6 and 7 training images, and two test images each; by their seeds."""
    seeds = {}
    for split, counts in (("train", (5, 6, 7)), ("test", (2, 2, 2))):
        for name, count in zip(("ape", "bee", "cow"), counts, strict=True):
            place = tmp_path / "mine" / split / name
            place.mkdir(parents=True)
            for i in range(count):
                seed = len(seeds)
                seeds[split, name, i] = seed
                Image.fromarray(pixels(seed, 8, 6, 3)).save(place / f"{i}.png")
    (tmp_path / "mine" / "train" / "ape" / "notes.txt").write_text("no image")
    return tmp_path / "mine", seeds


@pytest.mark.parametrize("stream", [False, True])
def test_images_in_folders(folders, tmp_path, stream):
    path, seeds = folders
    more = {"stream": True, "size": 6, "mean": [0.5], "std": [0.5]} if stream else {}
    data = ready(ImageFolder(path=str(path), val=0, cache_dir=str(tmp_path / "cache"), **more))
    assert data.names == ["ape", "bee", "cow"] and data.classes == 3
    assert data.shape == ((3, 6, 6) if stream else (3, 8, 6))
    assert data.train.y.tolist() == [0] * 5 + [1] * 6 + [2] * 7 and data.test.y.tolist() == [0, 0, 1, 1, 2, 2]
    if not stream:
        expected = [pixels(seed, 8, 6, 3) for (split, _, _), seed in seeds.items() if split == "train"]
        assert np.array_equal(data.train.x.permute(0, 2, 3, 1).numpy(), np.stack(expected))


def test_folders_without_a_test_split_give_a_fifth(folders, tmp_path):
    data = ready(ImageFolder(path=str(folders[0]), test_split=None, val=0, cache_dir=str(tmp_path / "cache")))
    assert len(data.train) == 15 and torch.bincount(data.test.y).tolist() == [1, 1, 1]


def test_a_run_on_folders(folders, tmp_path):
    words = ["dataset=image_folder", f"dataset.path={folders[0]}", f"cache_dir={tmp_path / 'cache'}", "dataset.val=0"]
    run = trainer(*words, "model=cnn", "model.widths=[4,4]", "model.hidden=4", "train.batch_size=6")
    run.step(next(run.loader.epoch(0)))


@pytest.mark.parametrize(
    "change, line",
    [
        (lambda path: {"path": None}, "dataset.path is not given"),
        (lambda path: {"path": str(path / "none")}, "there is no folder"),
        (lambda path: {"path": str(path), "test_split": "tset"}, "there is no folder"),
        (lambda path: (path / "test" / "dog").mkdir() or {"path": str(path)}, None),
        (lambda path: extra(path), "class 'dog' has no image in train"),
    ],
)
def test_what_is_wrong_with_folders_is_one_line(folders, tmp_path, change, line):
    made = ImageFolder(cache_dir=str(tmp_path / "cache"), **change(folders[0]))
    if line is None:  # an empty folder is no class
        assert ready(made).classes == 3
        return
    with pytest.raises(ValueError, match=line) as error:
        made.prepare()
    assert "\n" not in str(error.value)


def extra(path):
    (path / "test" / "dog").mkdir()
    Image.fromarray(pixels(0, 8, 6, 3)).save(path / "test" / "dog" / "0.png")
    return {"path": str(path)}


# ---- tables

ROWS = "age,kind,ok,price,class\n" + "".join(
    f"{20 + i},{'abc'[i % 3]},{'true' if i % 2 else 'false'},{10.5 * i},{'yes' if i % 4 else 'no'}\n" for i in range(40)
)


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "my.csv"
    path.write_text(ROWS)
    return path


def test_a_table_of_numbers_and_words(table):
    data = ready(TableFile(path=str(table), target="class", val=0))
    assert data.names == ["no", "yes"] and data.task == "classes"
    assert data.record["inputs"] == ["age", "kind=a", "kind=b", "kind=c", "ok", "price"]
    assert len(data.train) == 32 and len(data.test) == 8
    for x, y in zip(data.train.x.tolist(), data.train.y.tolist(), strict=True):
        i = int(x[0]) - 20
        assert x == [20 + i, *(float(i % 3 == k) for k in range(3)), float(i % 2), 10.5 * i] and y == int(i % 4 > 0)
    assert torch.allclose(data.mean, data.train.x.mean(0)) and data.bounds is None


def test_a_regression_target_is_standardised_by_training(table):
    data = ready(TableFile(path=str(table), target="price", columns=["age"], task="regression", val=0))
    assert data.shape == (1,) and data.classes == 1
    assert abs(data.train.y.mean()) < 1e-6 and data.train.y.std(correction=0).item() == pytest.approx(1)
    back = data.train.y * data.record["target"]["std"] + data.record["target"]["mean"]
    assert torch.allclose(back, 10.5 * (data.train.x[:, 0] - 20), atol=1e-3)
    run = trainer("dataset=table_file", f"dataset.path={table}", "dataset.target=price", "dataset.task=regression",
                  "loss=squared", "model.hidden=[4]", "train.batch_size=8")  # fmt: skip
    run.step(next(run.loader.epoch(0)))


def test_a_test_file_and_parquet(table, tmp_path):
    from pyarrow import csv, parquet

    other = tmp_path / "test.parquet"
    own = csv.read_csv(table)
    parquet.write_table(own.slice(0, 6), other)
    train = tmp_path / "train.tsv"
    lines = [line for line in ROWS.splitlines() if ",c," not in line]
    train.write_text("\n".join(lines).replace(",", "\t"))
    data = ready(TableFile(path=str(train), test_path=str(other), target="class", val=0))
    assert len(data.test) == 6 and data.record["inputs"] == ["age", "kind=a", "kind=b", "ok", "price"]
    assert data.test.x[2].tolist() == [22, 0, 0, 0, 21]  # a word that training does not have


@pytest.mark.parametrize(
    "words, text, line",
    [
        ({"target": None}, ROWS, "dataset.target is not given"),
        ({"path": "none.csv"}, ROWS, "there is no such file"),
        ({"target": "cost"}, ROWS, "has no column 'cost' but age, kind, ok, price, class"),
        ({}, ROWS.replace("\n21,", "\n,"), "column 'age' has no value in row 2"),
        ({"task": "regression"}, ROWS, "dataset.task=regression, and column 'class' is not of numbers"),
        ({"target": "price"}, ROWS, "one class id or name"),
    ],
)
def test_what_is_wrong_with_a_table_is_one_line(tmp_path, words, text, line):
    path = tmp_path / "my.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=line) as error:
        TableFile(**{"path": str(path), "target": "class", **words}).prepare()
    assert "\n" not in str(error.value)


# ---- arrays


@pytest.mark.parametrize(
    "shape, becomes", [((9, 4), (4,)), ((9, 5, 4), (1, 5, 4)), ((9, 5, 4, 3), (3, 5, 4)), ((9, 3, 5, 4), (3, 5, 4))]
)
def test_arrays(tmp_path, shape, becomes):
    x, y = pixels(0, *shape), np.arange(9) % 3
    np.savez(tmp_path / "my.npz", x_train=x, y_train=y, x_test=x[:4], y_test=y[:4, None])
    data = ready(Arrays(path=str(tmp_path / "my.npz"), val=0))
    assert data.shape == becomes and data.classes == 3 and data.bounds == (0, 255)
    assert data.train.x.dtype == torch.uint8 and data.test.y.tolist() == [0, 1, 2, 0]
    image = data.train.x[5].numpy()
    image = image.reshape(shape[1:]) if shape[-1] != 3 else image.transpose(1, 2, 0)
    assert np.array_equal(image, x[5])


def test_arrays_of_floats_and_without_a_test_split(tmp_path):
    x = np.random.default_rng(0).normal(size=(40, 3))
    np.savez(tmp_path / "my.npz", x_train=x, y_train=x[:, 0] * 2)
    data = ready(Arrays(path=str(tmp_path / "my.npz"), task="regression", val=0))
    assert len(data.train) == 30 and data.bounds is None and data.train.x.dtype == torch.float32
    assert torch.allclose(data.train.y, 2 * data.train.x[:, 0])


@pytest.mark.parametrize(
    "arrays, line",
    [
        (None, "dataset.path is not given"),
        ({"x": np.zeros(3)}, "no array x_train; there are: none"),
        ({"x_train": np.zeros((4, 2)), "y_train": np.zeros(4), "x_test": np.zeros((4, 2))}, "no array y_test"),
        ({"x_train": np.zeros((4, 2)), "y_train": np.full(4, 0.5)}, "y_train holds fractions"),
    ],
)
def test_what_is_wrong_with_arrays_is_one_line(tmp_path, arrays, line):
    path = None
    if arrays is not None:
        path = str(tmp_path / "my.npz")
        np.savez(path, **arrays)
    with pytest.raises(ValueError, match=line):
        Arrays(path=path).prepare()


# ---- torchvision's


def test_mnist_and_cifar_as_torchvision_left_them(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", 12), ("t10k", 5)):
        x, y = pixels(count, count, 28, 28), (np.arange(count) % 10).astype(np.uint8)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, count, 28, 28) + x.tobytes())
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + y.tobytes())
    data = ready(TorchvisionFiles(source="MNIST", root=str(tmp_path), val=0))
    assert data.shape == (1, 28, 28) and len(data.train) == 12 and data.classes == 10
    assert np.array_equal(data.train.x[:, 0].numpy(), pixels(12, 12, 28, 28))
    assert data.test.y.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("root, line", [(None, "dataset.root is not given"), ("here", "Dataset not found")])
def test_what_torchvision_did_not_download_is_one_line(tmp_path, root, line):
    with pytest.raises(ValueError, match=line) as error:
        TorchvisionFiles(source="CIFAR10", root=root and str(tmp_path)).prepare()
    assert "\n" not in str(error.value)
