"""Every image classification set in the hub's parquet layout, from a local folder or from the hub."""

import hashlib
import io
import json
import logging
import math
import os
import re
import shutil
from functools import lru_cache
from glob import escape
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from runner.dataset import Dataset, Split, fingerprint, fixed_test, statistics
from runner.schema import Count

log = logging.getLogger(__name__)
FORMAT = 1  # of the decoded cache; a change makes old entries unused
MODES = {"1": "L", "L": "L", "LA": "L", "P": "RGB", "RGB": "RGB", "RGBA": "RGB", "CMYK": "RGB", "YCbCr": "RGB"}


class Hub(Dataset):
    """Images with one class id each: inputs (C, H, W) uint8.

    Looked for as `<data_dir>/<name>/<split>-*.parquet`, then in the folders `data` and `<config>` below that, then on
    the hub, all through the `datasets` library. Images are decoded once and cached under `cache_dir`, safely for
    concurrent jobs; later starts read the cache alone. With `stream` they stay encoded and the loader's workers decode
    them.

    Parameters
    ----------
    name : folder below data_dir. Default None: the last part of `id`.
    id, config : the set on the hub.
    image, label : names of the columns. Labels are class ids or strings.
    train_split, test_split : names of the splits. test_split None: a fixed fifth of every class of the training split.
    channels : 1 or 3, into which images are converted. Default None: as stored, all alike.
    size : height and width. Default None: as stored, all alike.
    resize : what the shorter side is resized to (bilinear, with antialiasing) before the square `size` is cropped from
        the centre. Default None: `size`.
    stream : decode on demand; needs size, mean and std. Default False.
    random_crop : with stream, train on random resized crops (area 8 to 100 %, aspect 3/4 to 4/3; Szegedy et al. 2015,
        arXiv:1409.4842), flipped half of the time, instead of the centre. Default False.
    mean, std : per channel, in units of 0..1; one number serves all channels. Default None: of the training split.
    data_dir, cache_dir : folders. `~` is the home folder.

    Raises
    ------
    ValueError
        The set is neither in data_dir nor on the hub, or its columns, labels or images are not as declared.
    """

    bounds = (0, 255)

    def __init__(
        self,
        *,
        id: str | None,
        name: str | None = None,
        config: str | None = None,
        image: str = "image",
        label: str = "label",
        train_split: str = "train",
        test_split: str | None = "test",
        channels: Literal[1, 3] | None = None,
        size: Count | None = None,
        resize: Count | None = None,
        stream: bool = False,
        random_crop: bool = False,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        data_dir: str | None = None,
        cache_dir: str = "~/.cache/runner",
        **settings,
    ):
        super().__init__(**settings)
        if not id:
            raise ValueError("dataset.id is not given: the set's name on the hub, such as dataset.id=ylecun/mnist")
        if (mean is None) != (std is None):
            raise ValueError("dataset.mean and dataset.std go together: give both, or null for both")
        if stream and (size is None or mean is None):
            raise ValueError("dataset.stream=true needs dataset.size, dataset.mean and dataset.std")
        if random_crop and not stream:
            raise ValueError("dataset.random_crop=true needs dataset.stream=true; without it, use augment=crop_flip")
        if resize is not None and (size is None or resize < size):
            raise ValueError(f"dataset.resize={resize} needs a dataset.size that is not larger")
        self.id, self.config, self.name = id, config, name or id.split("/")[-1]
        self.image, self.label, self.train_split, self.test_split = image, label, train_split, test_split
        self.channels, self.size, self.resize, self.stream = channels, size, resize or size, stream
        self.random_crop, self.given = random_crop, (mean, std)
        self.data_dir = None if data_dir is None else Path(data_dir).expanduser()
        self.cache_dir = Path(cache_dir).expanduser()

    def load(self) -> tuple[Split, Split]:
        train, test, meta = self._stream() if self.stream else self._cached()
        self.classes, self.names, self.fingerprint = meta["classes"], meta["names"], meta["fingerprint"]
        channels = self.channels or 3 if self.stream else train.x.shape[1]
        self.shape = (channels, self.size, self.size) if self.stream else tuple(train.x.shape[1:])
        self.mean, self.std = (
            torch.tensor(values) if own is None else self._per_channel(own, channels) * 255
            for own, values in zip(self.given, meta["statistics"], strict=True)
        )
        return train, test

    @staticmethod
    def _per_channel(values: list[float], channels: int) -> Tensor:
        if len(values) not in (1, channels):
            raise ValueError(
                f"dataset.mean and dataset.std have {len(values)} values for images of {channels} channels: "
                "set both to null to have them computed"
            )
        return torch.tensor(list(values), dtype=torch.float32).expand(channels)

    # ---- finding

    def _files(self) -> dict[str, list[Path]]:
        """The local parquet files of every split; empty where there are none at all."""
        files = {split: self._find(split) for split in (self.train_split, self.test_split) if split}
        missing = [split for split, found in files.items() if not found]
        if missing and len(missing) < len(files):
            raise ValueError(
                f"data set '{self.name}': {self.data_dir / self.name} has files of another split, but no "
                f"{missing[0]}-*.parquet"
            )
        return {} if missing else files

    def _find(self, split: str) -> list[Path]:
        if self.data_dir is None:
            return []
        root = self.data_dir / self.name
        for folder in (root, root / "data", *([root / self.config] if self.config else [])):
            files = sorted(folder.glob(f"{escape(split)}-*.parquet"))
            whole = {int(count) for file in files for count in re.findall(r"-of-(\d+)", file.name)}
            if files and whole and whole != {len(files)}:
                raise ValueError(
                    f"data set '{self.name}': {len(files)} of {max(whole)} files of split '{split}' are in {folder}; "
                    "the copy is not complete"
                )
            if files:
                return files
        return []

    def _rows(self, split: str, files: dict[str, list[Path]], lazy: bool):
        """The rows of a split as a `datasets` object; lazy: read once from front to back, no copy kept on disk."""
        import datasets

        if files:
            return datasets.load_dataset(
                "parquet",
                data_files={split: [str(file) for file in files[split]]},
                split=split,
                streaming=lazy,
                cache_dir=None if lazy else str(self.cache_dir / "parquet"),
            )
        try:
            return datasets.load_dataset(self.id, self.config, split=split)
        except Exception as error:  # the hub's client raises a dozen kinds, none of them a fault of this program
            where = self.data_dir or "<data_dir>"
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"cannot find data set '{self.name}': no {where}/{self.name}/{split}-*.parquet, and the hub said: "
                f"{reason}; put the parquet files of {self.id} there, or set RUNNER_DATA or data_dir to where they are"
            ) from error

    # ---- decoded once

    def _cached(self) -> tuple[Split, Split, dict]:
        files = self._files()
        stats = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for split in files.values() for f in split]
        decoding = [self.image, self.label, self.train_split, self.test_split, self.channels, self.size, self.resize]
        key = json.dumps([FORMAT, stats or [self.id, self.config], decoding])
        folder = self.cache_dir / f"{Path(self.name).name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        if found := self._read(folder):
            return found
        import filelock

        lock = filelock.FileLock(f"{folder}.lock")
        try:
            self.cache_dir.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except (OSError, NotImplementedError) as error:
            self._uncached(error)
            return self._decode(files)
        try:
            found = self._read(folder)  # another job may have made it while this one waited
            if not found:
                found = self._decode(files)
                try:
                    self._write(folder, *found)
                except OSError as error:
                    self._uncached(error)
            return found
        finally:
            lock.release()

    def _uncached(self, error: Exception) -> None:
        log.warning("cannot keep decoded '%s' in %s: %s; going on without", self.name, self.cache_dir, error)

    @staticmethod
    @lru_cache(maxsize=2)  # the runs of a process read the same few sets
    def _held(folder: Path) -> tuple[Split, Split, dict]:
        meta = json.loads((folder / "meta.json").read_text())
        arrays = [torch.from_numpy(np.load(folder / f"{part}.npy")) for part in meta["shapes"]]
        if [list(array.shape) for array in arrays] != list(meta["shapes"].values()):
            raise ValueError("sizes differ from those noted")
        meta["classes"], meta["names"], meta["fingerprint"], meta["statistics"]  # noqa: B018 all there
        train_x, train_y, test_x, test_y = arrays
        return Split(train_x, train_y), Split(test_x, test_y), meta

    def _read(self, folder: Path) -> tuple[Split, Split, dict] | None:
        if not folder.is_dir():
            return None
        try:
            return self._held(folder)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            log.warning("the cache entry %s is damaged (%s); making it again", folder, reason)
            return None

    @staticmethod
    def _write(folder: Path, train: Split, test: Split, meta: dict) -> None:
        """Under the lock. Readers see the whole entry or none."""
        arrays = {"train_x": train.x, "train_y": train.y, "test_x": test.x, "test_y": test.y}
        meta = meta | {"shapes": {part: list(array.shape) for part, array in arrays.items()}}
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a job that was killed
        try:
            partial.mkdir()
            for part, array in arrays.items():
                np.save(partial / f"{part}.npy", array.numpy())
            (partial / "meta.json").write_text(json.dumps(meta))
            shutil.rmtree(folder, ignore_errors=True)  # a damaged entry
            os.replace(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _decode(self, files: dict[str, list[Path]]) -> tuple[Split, Split, dict]:
        pixels, labels, feature = {}, {}, None
        for split in filter(None, (self.train_split, self.test_split)):
            rows = self._rows(split, files, lazy=True)
            feature = feature or (rows.features or {}).get(self.label)
            pixels[split], labels[split] = self._pixels(rows, split)
        targets, names, classes = self._targets(labels, feature)
        train, test = self._divide({split: Split(pixels[split], targets[split]) for split in pixels})
        if train.x.shape[1:] != test.x.shape[1:]:
            raise ValueError(
                f"data set '{self.name}': training images are {tuple(train.x.shape[1:])} and test images "
                f"{tuple(test.x.shape[1:])}: set dataset.size and dataset.channels"
            )
        meta = {
            "classes": classes,
            "names": names,
            "statistics": [values.tolist() for values in statistics(train.x)],
            "fingerprint": fingerprint(train.x, train.y, test.x, test.y),
        }
        return train, test, meta

    def _divide(self, splits: dict[str, Split]) -> tuple[Split, Split]:
        train = splits[self.train_split]
        if self.test_split:
            return train, splits[self.test_split]
        kept, held = fixed_test(train.y, "hub test")
        return train.select(kept), train.select(held)

    def _pixels(self, rows, split: str) -> tuple[Tensor, list]:
        """(N, C, H, W) uint8 and the labels as stored, in the order of the rows."""
        from PIL import Image

        pixels, labels, first = bytearray(), [], None
        for table in rows.with_format("arrow").iter(batch_size=1000):
            self._check_columns(table.column_names)
            for i, cell in enumerate(table[self.image].to_pylist(), start=len(labels)):
                place = f"image {i} of split '{split}' of '{self.name}'"
                try:
                    image = self._convert(Image.open(_source(cell)), place)
                    image = image if self.size is None else centre(image, self.size, self.resize)
                    pixels += image.tobytes()
                except (
                    OSError,
                    TypeError,
                    KeyError,
                    SyntaxError,
                ) as error:  # PIL has no class of its own for all of them
                    raise ValueError(f"{place} cannot be decoded: {error}") from error
                first = first or image
                if (image.mode, image.size) != (first.mode, first.size):
                    setting = "size" if image.mode == first.mode else "channels"
                    raise ValueError(
                        f"{place} is {image.mode} {image.width}x{image.height} and the first is {first.mode} "
                        f"{first.width}x{first.height}: set dataset.{setting}"
                    )
            labels += table[self.label].to_pylist()
        if not labels:
            raise ValueError(f"split '{split}' of '{self.name}' is empty")
        x = torch.frombuffer(pixels, dtype=torch.uint8).view(len(labels), first.height, first.width, -1)
        return x.permute(0, 3, 1, 2).contiguous(), labels

    def _convert(self, image, place: str):
        mode = {None: MODES.get(image.mode), 1: "L", 3: "RGB"}[self.channels]
        if image.mode not in MODES:
            raise ValueError(f"{place} has pixels of kind {image.mode}; only 8-bit images are supported")
        return image if image.mode == mode else image.convert(mode)

    def _check_columns(self, columns: list[str]) -> None:
        for setting, column in (("image", self.image), ("label", self.label)):
            if column not in columns:
                raise ValueError(
                    f"data set '{self.name}' has no column '{column}' but {', '.join(columns)}: set dataset.{setting}"
                )

    def _targets(self, labels: dict[str, list], feature) -> tuple[dict[str, Tensor], list[str] | None, int]:
        """Class ids of every split, the classes' names where known, and how many classes there are."""
        names = getattr(feature, "names", None)
        known = {type(value) for values in labels.values() for value in values}
        if known == {str}:
            names = sorted(set(labels[self.train_split]))
            ids = {name: i for i, name in enumerate(names)}
            labels = {split: [ids.get(value, -1) for value in values] for split, values in labels.items()}
        elif not known <= {int, bool}:
            kinds = ", ".join(sorted(kind.__name__ for kind in known))
            raise ValueError(
                f"column '{self.label}' of '{self.name}' holds {kinds}, not one class id or name per image: "
                "set dataset.label"
            )
        targets = {split: torch.tensor(values, dtype=torch.int64) for split, values in labels.items()}
        return targets, names, len(names) if names else 1 + max(int(y.max()) for y in targets.values())

    # ---- decoded on demand

    def _stream(self) -> tuple[Split, Split, dict]:
        import datasets

        files = self._files()
        columns, labels, feature = {}, {}, None
        for split in filter(None, (self.train_split, self.test_split)):
            try:
                rows = self._rows(split, files, lazy=False)
            except OSError as error:
                raise ValueError(f"dataset.stream=true keeps a copy in {self.cache_dir}: {error}") from error
            self._check_columns(rows.column_names)
            feature = feature or rows.features[self.label]
            labels[split] = rows.data.column(self.label).to_pylist()
            columns[split] = rows.select_columns([self.image]).cast_column(self.image, datasets.Image(decode=False))
        targets, names, classes = self._targets(labels, feature)
        settings = (self.image, self.channels or 3, self.size, self.resize, self.random_crop)
        splits = {
            split: Split(Encoded(rows, torch.arange(len(rows)), *settings), targets[split])
            for split, rows in columns.items()
        }
        train, test = self._divide(splits)
        digest = fingerprint(
            train.y, test.y, *map(_sizes, columns.values()), *(_some(rows) for rows in columns.values())
        )
        meta = {"classes": classes, "names": names, "fingerprint": digest}
        return train, test, meta | {"statistics": [None, None]}


class Encoded:
    """Images that stay encoded until they are asked for; follows `runner.dataset.Images`.

    rows: a `datasets.Dataset` with undecoded images in `column`; index: (N,) which rows, in order.
    """

    def __init__(self, rows, index: Tensor, column: str, channels: int, size: int, resize: int, random_crop: bool):
        self.rows, self.index = rows, index
        self.settings = (column, channels, size, resize, random_crop)
        self.column, self.mode, self.size, self.resize = column, "L" if channels == 1 else "RGB", size, resize
        self.random_crop = random_crop

    def __len__(self) -> int:
        return len(self.index)

    def select(self, index: Tensor) -> "Encoded":
        return Encoded(self.rows, self.index[index], *self.settings)

    def get(self, i: int, seed: int | None) -> Tensor:
        """(C, size, size) uint8; with a seed and `random_crop`, a random resized crop, else the centre."""
        from PIL import Image

        image = Image.open(_source(self.rows[int(self.index[i])][self.column])).convert(self.mode)
        if self.random_crop and seed is not None:
            image = random_resized_crop(image, self.size, np.random.Generator(np.random.Philox(seed)))
        else:
            image = centre(image, self.size, self.resize)
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        return pixels.view(self.size, self.size, -1).permute(2, 0, 1)


def _sizes(rows) -> Tensor:
    """(N,) int64, the bytes of every encoded image: of all that the images hold, what is quick to read."""
    import pyarrow.compute as pc

    column = rows.data.column(0)
    lengths = pc.fill_null(pc.binary_length(pc.struct_field(column, "bytes")), -1)
    return torch.from_numpy(lengths.to_numpy().astype(np.int64))


def _some(rows) -> Tensor:
    """The bytes of sixteen images, evenly spaced, one after another."""
    chosen = torch.linspace(0, len(rows) - 1, 16).long().unique().tolist()
    cells = [rows[i][rows.column_names[0]] for i in chosen]
    data = b"".join(str(cell["path"]).encode() if cell["bytes"] is None else cell["bytes"] for cell in cells)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _source(cell: dict):
    return io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else cell["path"]


def centre(image, size: int, resize: int):
    """The shorter side resized to `resize`, then the size x size centre."""
    from PIL import Image

    width, height = image.size
    if min(width, height) != resize:
        scaled = (resize, int(resize * height / width)) if width <= height else (int(resize * width / height), resize)
        image = image.resize(scaled, Image.Resampling.BILINEAR)
        width, height = scaled
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image if (width, height) == (size, size) else image.crop((left, top, left + size, top + size))


def random_resized_crop(image, size: int, draw: np.random.Generator):
    """A part of 8 to 100 % of the area and of aspect 3/4 to 4/3, resized to size x size and flipped half of the time.

    Ten tries, then the largest central part within the aspects, as torchvision's RandomResizedCrop does.
    """
    from PIL import Image

    width, height = image.size
    for _ in range(10):
        area = width * height * draw.uniform(0.08, 1.0)
        aspect = math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(draw.integers(0, width - w + 1)), int(draw.integers(0, height - h + 1))
            break
    else:
        w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        left, top = (width - w) // 2, (height - h) // 2
    image = image.crop((left, top, left + w, top + h)).resize((size, size), Image.Resampling.BILINEAR)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw.random() < 0.5 else image
