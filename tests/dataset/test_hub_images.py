"""Images and labels of sets in the hub's layout, resident and streamed, against what `datasets` makes of the files."""

import io
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from runner.core.mistake import ConfigError
from runner.dataset.images import decode
from runner.dataset.loader import Loader
from tests.dataset.made import NAMES, STREAM, images, load, write
from tests.dataset.test_cache import never

SMOOTH = np.add.outer(np.arange(24) * 7, np.arange(36) * 2)[..., None] + np.array([0, 3, 9])  # no two corners alike
SMOOTH = SMOOTH.astype(np.uint8)


def encoded(image: Image.Image, kind: str, **settings) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **settings)
    return out.getvalue()


def turned(orientation: int, kind: str = "jpeg") -> bytes:
    """A picture that a camera held otherwise has stored with its EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.fromarray(SMOOTH), kind, exif=exif)


def reference(data: bytes) -> Image.Image:
    """As the `datasets` library decodes the cell."""
    import datasets

    return datasets.Image().decode_example({"bytes": data, "path": None})


def parquet(root: Path, train: list[bytes], test: list[bytes], labels=None) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (root / "data" / "tiny").mkdir(parents=True)
    for split, cells in (("train", train), ("test", test)):
        y = np.arange(len(cells)) % 2 if labels is None else labels[split]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        column = pa.array([{"bytes": cell, "path": None} for cell in cells], kind)
        table = pa.table({"image": column, "label": y})
        pq.write_table(table, root / "data" / "tiny" / f"{split}-0.parquet")
    return root


# ---- orientation


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff"])
def test_every_orientation_is_turned_upright(kind):
    seen = set()
    for orientation in range(1, 9):
        data = turned(orientation, kind)
        upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
        found = np.asarray(decode({"bytes": data, "path": None}, None, "it"))
        assert np.array_equal(found, upright)
        assert np.array_equal(found, np.asarray(reference(data)))
        seen.add((found.shape, found[0, 0, 0], found[-1, -1, 0], found[0, -1, 0]))
    assert len(seen) == 8


def test_resident_cached_and_streamed_images_are_upright(tmp_path, monkeypatch):
    upside, left = [turned(1), turned(2), turned(3), turned(4)], [turned(5), turned(6), turned(7), turned(8)]
    root = parquet(tmp_path, upside, upside[::-1])
    expected = [np.asarray(reference(data)).transpose(2, 0, 1) for data in upside]
    first = load(root)
    assert np.array_equal(first.train.x.numpy(), expected)
    with monkeypatch.context() as patched:
        patched.setattr("runner.dataset.hub.Hub._decode", never)
        assert np.array_equal(load(root).test.x.numpy(), expected[::-1])
    root = parquet(tmp_path / "left", left, left)
    resident, streamed = load(root, size=20), load(root, **STREAM | {"size": 20})
    crops = [
        np.asarray(reference(data).resize((20, 30), Image.Resampling.BILINEAR).crop((0, 5, 20, 25))) for data in left
    ]
    for x in (resident.train.x, torch.stack([streamed.train.x.get(i, None) for i in range(4)])):
        assert np.array_equal(x.numpy(), np.transpose(crops, (0, 3, 1, 2)))


def test_entries_of_the_cache_from_before_are_not_used(tmp_path, monkeypatch):
    root = parquet(tmp_path, [turned(3)] * 2, [turned(3)] * 2)
    monkeypatch.setattr("runner.dataset.hub.FORMAT", 1)
    load(root)
    monkeypatch.undo()
    load(root)
    assert len([path for path in (root / "cache").iterdir() if path.is_dir()]) == 2


@pytest.mark.parametrize(
    "exif", [b"", b"Exif\0\0", b"Exif\0\0garbage that is no TIFF header", b"Exif\0\0MM\0*\0\0\0\x08\0"]
)
def test_broken_exif_turns_nothing(exif):
    data = encoded(Image.fromarray(SMOOTH), "jpeg", exif=exif)
    with warnings.catch_warnings(action="ignore"):  # PIL's, of corrupt EXIF
        found = np.asarray(decode({"bytes": data, "path": None}, None, "it"))
        assert np.array_equal(found, np.asarray(reference(data)))
        assert np.array_equal(found, np.asarray(Image.open(io.BytesIO(data))))


# ---- kinds of pixels


def kinds() -> dict[str, tuple[bytes, str]]:
    """Name -> (file, mode that it becomes)."""
    colour = Image.fromarray(SMOOTH)
    grey, mask = colour.convert("L"), Image.fromarray(SMOOTH[..., 0])
    alpha, grey_alpha, palette = colour.copy(), grey.copy(), colour.quantize(16)
    alpha.putalpha(mask)
    grey_alpha.putalpha(mask)
    frames = [colour.quantize(16), Image.new("P", colour.size)]
    return {
        "grey": (encoded(grey, "png"), "L"),
        "black and white": (encoded(grey.convert("1"), "png"), "L"),
        "grey and alpha": (encoded(grey_alpha, "png"), "L"),
        "colour and alpha": (encoded(alpha, "png"), "RGB"),
        "palette": (encoded(palette, "png"), "RGB"),
        "palette, one transparent": (encoded(palette, "png", transparency=3), "RGB"),
        "palette with alphas": (encoded(palette, "png", transparency=bytes(range(0, 160, 10))), "RGB"),
        "cmyk": (encoded(colour.convert("CMYK"), "jpeg"), "RGB"),
        "grey jpeg": (encoded(grey, "jpeg"), "L"),
        "animated": (encoded(frames[0], "gif", save_all=True, append_images=frames[1:]), "RGB"),
        "webp": (encoded(alpha, "webp", lossless=True), "RGB"),
    }


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", list(kinds()))
def test_kinds_of_pixels_are_what_datasets_decodes(name):
    data, mode = kinds()[name]
    for channels, expected in ((None, mode), (1, "L"), (3, "RGB")):
        found = decode({"bytes": data, "path": None}, channels, "it")
        theirs = reference(data)
        theirs = theirs.convert("RGBA") if theirs.mode == "P" and "transparency" in theirs.info else theirs
        assert found.mode == expected
        assert np.array_equal(np.asarray(found), np.asarray(theirs.convert(expected)))


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), (None, 3)])
def test_a_mode_that_the_column_declares_is_converted_into(tmp_path, mode, channels):
    import pyarrow.parquet as pq

    root = parquet(tmp_path, [encoded(Image.fromarray(SMOOTH), "png")] * 2, [encoded(Image.fromarray(SMOOTH), "png")])
    for path in (root / "data" / "tiny").iterdir():
        table = pq.read_table(path)
        features = {"image": {"mode": mode, "_type": "Image"}, "label": {"dtype": "int64", "_type": "Value"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        pq.write_table(table, path)
    expected = np.asarray(Image.fromarray(SMOOTH).convert(mode or "RGB")).reshape(24, 36, channels)
    assert np.array_equal(load(root).train.x[0].permute(1, 2, 0).numpy(), expected)


def test_a_cell_may_be_bytes_alone():
    data = kinds()["palette"][0]
    assert np.array_equal(decode(data, 3, "it"), decode({"bytes": data, "path": None}, 3, "it"))


DEEP = Image.fromarray(SMOOTH[..., 0].astype(np.uint16) * 250)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("part", ["train", "test"])
def test_an_empty_split_is_a_line(tmp_path, stream, part):
    whole = [encoded(Image.fromarray(SMOOTH), "png")] * 2
    labels = {split: np.arange(0 if split == part else 2) for split in ("train", "test")}
    root = parquet(tmp_path, *([] if split == part else whole for split in ("train", "test")), labels)
    with pytest.raises(ValueError, match=f"'{part}'.* is empty") as error:
        load(root, **(STREAM if stream else {}))
    assert "\n" not in str(error.value) and "tiny" in str(error.value)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("damage", ["torn", "empty", "garbage", "folder", "other column", "other type"])
def test_damaged_files_are_a_line(tmp_path, stream, damage):
    """The second of two files; `datasets` reads them one after another."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pixels = images(8, (4, 4, 3))
    for split in ("train", "test"):
        write(tmp_path / "data" / "tiny" / f"{split}-0.parquet", pixels, np.arange(8) % 2)
    path, table = tmp_path / "data" / "tiny" / "train-1.parquet", pq.read_table(tmp_path / "data/tiny/train-0.parquet")
    whole = (tmp_path / "data" / "tiny" / "train-0.parquet").read_bytes()
    match damage:
        case "torn":
            path.write_bytes(whole[: len(whole) // 2])
        case "empty":
            path.write_bytes(b"")
        case "garbage":
            path.write_bytes(bytes(500))
        case "folder":
            path.mkdir()
        case "other column":
            pq.write_table(table.rename_columns(["image", "target"]), path)
        case "other type":
            pq.write_table(table.set_column(1, "label", pa.array([["a"]] * 8)), path)
    with pytest.raises(ValueError, match="tiny") as error:
        load(tmp_path, **(STREAM if stream else {}))
    assert "\n" not in str(error.value) and "train" in str(error.value)


def test_a_file_without_rows_among_others_is_left_out(tmp_path):
    root = parquet(tmp_path, [encoded(Image.fromarray(SMOOTH), "png")] * 2, [encoded(Image.fromarray(SMOOTH), "png")])
    import pyarrow.parquet as pq

    pq.write_table(pq.read_table(root / "data/tiny/train-0.parquet")[:0], root / "data/tiny/train-1.parquet")
    assert [len(load(root, **settings).train) for settings in ({}, STREAM)] == [2, 2]


@pytest.mark.parametrize("stream", [False, True])
def test_sixteen_bits_are_refused_and_not_clipped(tmp_path, stream):
    deep = [encoded(DEEP, "png")] * 2
    settings = STREAM if stream else {"size": 4, "channels": 3}
    with pytest.raises(ValueError, match="image 0 of split 'train' of 'tiny' has pixels of kind I;16; only 8-bit"):
        load(parquet(tmp_path, deep, deep), **settings)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_of_a_stream_is_a_line_where_it_is_met(tmp_path, workers):
    whole = encoded(Image.fromarray(SMOOTH), "png")
    dataset = load(parquet(tmp_path, [whole, whole, whole[: len(whole) // 2], whole], [whole, b""]), **STREAM)
    loader = Loader(dataset, "cpu", 2, 0, workers=workers)
    met = (loader.epoch(0), "image 2 of split 'train'"), (loader.evaluate(dataset.test, 1), "image 1 of split 'test'")
    for batches, place in met:
        with pytest.raises(ConfigError, match=f"^dataset: {place} of 'tiny' cannot be decoded: [^\n]*$"):
            list(batches)


# ---- class ids


def grey(n):
    return [encoded(Image.fromarray(x), "png") for x in images(n, (4, 4))]


def with_labels(root: Path, train, test, **settings):
    return load(parquet(root, grey(len(train)), grey(len(test)), {"train": train, "test": test}), **settings)


BOTH = pytest.mark.parametrize("settings", [{}, STREAM | {"channels": 1}], ids=["resident", "streamed"])


@BOTH
def test_ids_with_holes_are_numbered_in_their_order(tmp_path, settings):
    dataset = with_labels(tmp_path, [30, 10, 20, 20], [10, 30], **settings)
    assert dataset.train.y.tolist() == [2, 0, 1, 1] and dataset.test.y.tolist() == [0, 2]
    assert (dataset.classes, dataset.names) == (3, ["10", "20", "30"])
    assert json.loads(json.dumps(dataset.record))["labels"] == {"10": 0, "20": 1, "30": 2}
    assert dataset.notices == ["the class ids 10 to 30 have holes and are numbered 0 to 2 in their order"]


@pytest.mark.parametrize("ids", [[1, 2, 3], [0, 5, 6], [0, 1, 10**9], [3, 7, 2**40]])
def test_noise_stays_within_the_classes_there_are(tmp_path, ids):
    dataset = with_labels(tmp_path, ids * 20, ids, noise="symmetric", noise_rate=1.0)
    assert dataset.classes == 3 and dataset.class_counts == torch.bincount(dataset.train.y, minlength=3).tolist()
    assert min(dataset.class_counts) > 5
    assert list(dataset.record["labels"]) == [str(label) for label in ids]


def test_a_map_of_classes_has_the_ids_of_the_files(tmp_path):
    settings = {"noise": "asymmetric", "noise_rate": 1.0}
    dataset = with_labels(tmp_path, [1, 2, 3] * 5, [1, 2, 3], asymmetric={1: 2, 3: 1}, **settings)
    assert dataset.train.y.tolist() == [1, 1, 0] * 5
    dataset.prepare()
    assert dataset.train.y.tolist() == [1, 1, 0] * 5
    with pytest.raises(ValueError, match="dataset.asymmetric has 0, and the class ids of 'tiny' are 1, 2, 3"):
        load(tmp_path, asymmetric={0: 1}, **settings)


@BOTH
def test_ids_without_holes_and_declared_classes_are_as_ever(tmp_path, settings):
    dataset = with_labels(tmp_path / "plain", [2, 0, 1], [0, 3], **settings)
    assert (dataset.train.y.tolist(), dataset.test.y.tolist(), dataset.names) == ([2, 0, 1], [0, 3], None)
    assert dataset.classes == 4 and "labels" not in dataset.record
    assert dataset.notices == ["1 of 4 classes have no training sample: 3; 1 of the 2 test samples are of them"]
    for split in ("train", "test"):  # the names say how many classes there are, with samples or without
        write(tmp_path / "data" / "tiny" / f"{split}-0.parquet", images(3, (4, 4)), [0, 2, 2], names=NAMES)
    declared = load(tmp_path, **settings)
    assert (declared.train.y.tolist(), declared.classes, declared.names) == ([0, 2, 2], 3, NAMES)
    assert declared.notices == ["1 of 3 classes have no training sample: bee"]


@BOTH
def test_words_that_the_test_split_alone_has_are_classes_too(tmp_path, settings):
    dataset = with_labels(tmp_path, ["dog", "cat"], ["cat", "bee", "dog"], **settings)
    assert (dataset.names, dataset.train.y.tolist(), dataset.test.y.tolist()) == (
        ["bee", "cat", "dog"],
        [2, 1],
        [1, 0, 2],
    )
    assert dataset.notices == ["1 of 3 classes have no training sample: bee; 1 of the 3 test samples are of them"]


@BOTH
@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        ([0, 1], [0, -1], "split 'test' of data set 'tiny': labels must be not negative, and 1 of 2 .*row 1 is -1"),
        ([0.0, 1.0], [0, 1], "holds float, int, not one class id or name per image: set dataset.label"),
        ([0, None], [0, 1], "holds int, nothing, not one class"),
        (["a", "b"], ["a", None], "holds nothing, str, not one class"),
    ],
)
def test_labels_that_are_no_classes(tmp_path, settings, train, test, words):
    with pytest.raises(ValueError, match=words) as error:
        with_labels(tmp_path, train, test, **settings)
    assert "\n" not in str(error.value)


def test_labels_beyond_the_declared_classes(tmp_path):
    for split, labels in (("train", [0, 1]), ("test", [2, 10**9])):
        write(tmp_path / "data" / "tiny" / f"{split}-0.parquet", images(2, (4, 4)), labels, names=NAMES)
    with pytest.raises(ValueError, match=r"'test' .*in 0\.\.2, of which it declares the names.*row 1 is 1000000000"):
        load(tmp_path)


def test_splits_that_number_their_classes_differently_are_refused(tmp_path):
    for split, names in (("train", NAMES), ("test", NAMES[::-1])):
        write(tmp_path / "data" / "tiny" / f"{split}-0.parquet", images(3, (4, 4)), [0, 1, 2], names=names)
    with pytest.raises(ValueError, match="split 'test' declares other classes, or another order"):
        load(tmp_path)


def test_a_streams_fingerprint_depends_on_images_and_labels(tmp_path):
    def of(pixels, labels):
        root = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        for split in ("train", "test"):
            write(root / "data" / "tiny" / f"{split}-0.parquet", pixels, labels)
        return load(root, **STREAM).record["fingerprint"]

    pixels, labels = images(40, (6, 5, 3)), np.arange(40) % 3
    other = pixels.copy()
    other[7] = 0  # not among the sixteen that are read: its size tells
    found = [of(pixels, labels), of(other, labels), of(pixels, labels[::-1]), of(pixels[::-1], labels)]
    assert len(set(found)) == 4
    assert of(pixels, labels) == found[0]
    assert all(len(digest) == 64 for digest in found)
