"""Every image classification set in the hub's parquet layout, from a local folder or from the hub."""

import hashlib
import json
import logging
import re
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from runner.core.schema import Count
from runner.dataset import Dataset, Split, fingerprint, fixed_test, statistics
from runner.dataset.decoded import kept, line_of
from runner.dataset.images import Encoded, centre, decode, sizes, some
from runner.dataset.labels import Labels, class_ids
from runner.dataset.online import at_once

log = logging.getLogger(__name__)
FORMAT = 2  # of the decoded cache; a change makes old entries unused


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
    image, label : names of the columns. Images are turned as their EXIF orientation says, see
        `runner.dataset.images.decode`. Labels are class ids or words; ids with holes that no names go with, such as 10,
        20, 30, are numbered 0 to C-1 in their order, see `runner.dataset.labels.class_ids`; `asymmetric` has the ids as
        they are in the files.
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

    Attributes
    ----------
    record : `labels` maps the ids in the files to those here, where they differ.

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
        if mean is not None and not (all(0 <= m <= 1 for m in mean) and all(0 < s <= 1 for s in std)):
            raise ValueError(
                f"dataset.mean={list(mean)} and dataset.std={list(std)} must be in units of 0..1, where 1 is the "
                "brightest pixel, and std above 0"
            )
        if train_split == test_split:
            raise ValueError(
                f"dataset.train_split and dataset.test_split are both '{test_split}', which would test on what was "
                "trained on; for a fixed fifth of it as the test split, dataset.test_split=null"
            )
        if stream and (size is None or mean is None):
            raise ValueError("dataset.stream=true needs dataset.size, dataset.mean and dataset.std")
        if random_crop and not stream:
            raise ValueError("dataset.random_crop=true needs dataset.stream=true; without it, use augment=crop_flip")
        if resize is not None and (size is None or resize < size):
            raise ValueError(f"dataset.resize={resize} needs a dataset.size that is not larger")
        self.id, self.config, self.name = id, config, name or id.split("/")[-1]
        self.image, self.label, self.train_split, self.test_split = image, label, train_split, test_split
        self.channels, self.size, self.resize, self.stream = channels, size, resize or size, stream
        self.random_crop, self.given, self.published = random_crop, (mean, std), self.asymmetric
        self.data_dir = None if data_dir is None else Path(data_dir).expanduser()
        self.cache_dir = Path(cache_dir).expanduser()

    def load(self) -> tuple[Split, Split]:
        train, test, meta = self._stream() if self.stream else self._cached()
        self.classes, self.names, self.fingerprint = meta["classes"], meta["names"], meta["fingerprint"]
        self.ids = meta["ids"]
        if self.ids is not None and self.published:
            self.asymmetric = self._numbered(self.published)
        channels = self.channels or 3 if self.stream else train.x.shape[1]
        self.shape = (channels, self.size, self.size) if self.stream else tuple(train.x.shape[1:])
        self.mean, self.std = (
            torch.tensor(values) if own is None else self._per_channel(own, channels) * 255
            for own, values in zip(self.given, meta["statistics"], strict=True)
        )
        return train, test

    @property
    def local(self) -> bool:
        return bool(self._files())

    def prepare(self) -> None:
        super().prepare()
        if self.ids is not None:
            self.record |= {"labels": {str(label): i for i, label in enumerate(self.ids)}}
            low, high, last = self.ids[0], self.ids[-1], len(self.ids) - 1
            self.notices.append(f"the class ids {low} to {high} have holes and are numbered 0 to {last} in their order")

    def _numbered(self, mapping: dict[int, int]) -> dict[int, int]:
        """A map of class ids as they are in the files, in those here."""
        numbers = {label: i for i, label in enumerate(self.ids)}
        if unknown := sorted({*mapping.keys(), *mapping.values()} - numbers.keys()):
            shown = ", ".join(map(str, self.ids[:5])) + (", ..." if len(self.ids) > 5 else "")
            raise ValueError(f"dataset.asymmetric has {unknown[0]}, and the class ids of '{self.name}' are {shown}")
        return {numbers[old]: numbers[new] for old, new in mapping.items()}

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
            with self._reading(split):
                return datasets.load_dataset(
                    "parquet",
                    data_files={split: self._patterns(split, files[split])},
                    split=split,
                    streaming=lazy,
                    cache_dir=None if lazy else str(self.cache_dir / "parquet"),
                )
        with at_once() as wrong:
            try:
                return datasets.load_dataset(self.id, self.config, split=split)
            except Exception as error:  # the hub's client raises a dozen kinds, none of them a fault of this program
                where = self.data_dir or "<data_dir>"
                reason = f"the hub said: {line_of(error)}"
                if wrong and isinstance(error, ConnectionError):
                    reason = f"the hub cannot be asked ({wrong})"
                raise ValueError(
                    f"cannot find data set '{self.name}': no {where}/{self.name}/{split}-*.parquet, and {reason}; "
                    f"put the parquet files of {self.id} there, or set RUNNER_DATA or data_dir to where they are"
                ) from error

    def _patterns(self, split: str, files: list[Path]) -> list[str]:
        """The files that have rows, as `datasets` takes them. It stumbles over a file without."""
        import pyarrow.parquet as pq

        found = []
        for file in files:
            try:
                rows = pq.read_metadata(file).num_rows
            except (pq.lib.ArrowException, OSError) as error:
                raise ValueError(
                    f"data set '{self.name}': {file} is no parquet file, or damaged: {line_of(error)}"
                ) from error
            found += [escape(str(file))] if rows else []
        if not found:
            raise ValueError(f"split '{split}' of data set '{self.name}' is empty: {files[0].parent}")
        return found

    @contextmanager
    def _reading(self, split: str):
        """What is wrong with the files of a split as one line."""
        try:
            yield
        except Exception as error:  # pyarrow and `datasets` have a dozen kinds
            if type(error) is ValueError:  # our own
                raise
            cause = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            if type(cause).__module__ == "builtins" and isinstance(cause, OSError):  # a full disk, say
                raise cause from error
            raise ValueError(f"split '{split}' of data set '{self.name}' cannot be read: {line_of(cause)}") from error

    # ---- decoded once

    def _cached(self) -> tuple[Split, Split, dict]:
        files = self._files()
        stats = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for split in files.values() for f in split]
        decoding = [self.image, self.label, self.train_split, self.test_split, self.channels, self.size, self.resize]
        key = json.dumps([FORMAT, stats or [self.id, self.config], decoding])
        folder = self.cache_dir / f"{Path(self.name).name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        return kept(folder, f"'{self.name}'", lambda: self._decode(files))

    def _decode(self, files: dict[str, list[Path]]) -> tuple[Split, Split, dict]:
        pixels, labels, features = {}, {}, {}
        for split in filter(None, (self.train_split, self.test_split)):
            rows = self._rows(split, files, lazy=True)
            features[split] = (rows.features or {}).get(self.label)
            with self._reading(split):
                pixels[split], labels[split] = self._pixels(rows, split)
        found = self._targets(labels, features)
        train, test = self._divide({split: Split(pixels[split], found.targets[split]) for split in pixels})
        if train.x.shape[1:] != test.x.shape[1:]:
            raise ValueError(
                f"data set '{self.name}': training images are {tuple(train.x.shape[1:])} and test images "
                f"{tuple(test.x.shape[1:])}: set dataset.size and dataset.channels"
            )
        meta = found.meta | {
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
        declared = getattr((rows.features or {}).get(self.image), "mode", None)  # what `datasets` converts into
        channels = self.channels or {"L": 1, "RGB": 3}.get(declared)
        pixels, labels, first = bytearray(), [], None
        for table in rows.with_format("arrow").iter(batch_size=1000):
            self._check_columns(table.column_names)
            for i, cell in enumerate(table[self.image].to_pylist(), start=len(labels)):
                place = f"image {i} of split '{split}' of '{self.name}'"
                image = decode(cell, channels, place)
                image = image if self.size is None else centre(image, self.size, self.resize)
                pixels += image.tobytes()
                first = first or image
                if (image.mode, image.size) != (first.mode, first.size):
                    setting = "size" if image.mode == first.mode else "channels"
                    raise ValueError(
                        f"{place} is {image.mode} {image.width}x{image.height} and the first is {first.mode} "
                        f"{first.width}x{first.height}: set dataset.{setting}"
                    )
            labels += table[self.label].to_pylist()
        if not labels:
            raise ValueError(f"split '{split}' of data set '{self.name}' is empty")
        x = torch.frombuffer(pixels, dtype=torch.uint8).view(len(labels), first.height, first.width, -1)
        return x.permute(0, 3, 1, 2).contiguous(), labels

    def _check_columns(self, columns: list[str]) -> None:
        for setting, column in (("image", self.image), ("label", self.label)):
            if column not in columns:
                raise ValueError(
                    f"data set '{self.name}' has no column '{column}' but {', '.join(columns)}: set dataset.{setting}"
                )

    def _targets(self, labels: dict[str, list], features: dict) -> Labels:
        names = {split: getattr(feature, "names", None) for split, feature in features.items()}
        return class_ids(labels, names, f"column '{self.label}'", f"data set '{self.name}'")

    # ---- decoded on demand

    def _stream(self) -> tuple[Split, Split, dict]:
        import datasets

        files = self._files()
        columns, labels, features = {}, {}, {}
        for split in filter(None, (self.train_split, self.test_split)):
            try:
                rows = self._rows(split, files, lazy=False)
            except OSError as error:
                raise ValueError(f"dataset.stream=true keeps a copy in {self.cache_dir}: {error}") from error
            self._check_columns(rows.column_names)
            features[split] = rows.features[self.label]
            labels[split] = rows.data.column(self.label).to_pylist()
            columns[split] = rows.select_columns([self.image]).cast_column(self.image, datasets.Image(decode=False))
        found = self._targets(labels, features)
        settings = (self.image, self.channels or 3, self.size, self.resize, self.random_crop)
        splits = {
            split: Split(
                Encoded(rows, torch.arange(len(rows)), *settings, f"split '{split}' of '{self.name}'"),
                found.targets[split],
            )
            for split, rows in columns.items()
        }
        train, test = self._divide(splits)
        digest = fingerprint(train.y, test.y, *map(sizes, columns.values()), *map(some, columns.values()))
        return train, test, found.meta | {"fingerprint": digest, "statistics": [None, None]}
