"""Images in folders: one folder for each split, in it one for each class."""

from pathlib import Path
from typing import Literal

from runner.core.schema import Count
from runner.dataset import Dataset, Split
from runner.dataset.hub import Hub

ENDS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


class ImageFolder(Dataset):
    """`<path>/<split>/<class>/*.jpg` (also png, webp, tiff, ...): inputs (C, H, W) uint8. Classes are the names of the
    folders, numbered in their order. Decoded once and kept in `cache_dir`, or on demand with `stream`, as of
    `runner.dataset.hub.Hub`, whose other parameters these are.

    Parameters
    ----------
    path : the folder of the splits; relative to where the command is given.
    train_split, test_split : names of folders. test_split None: a fixed fifth of every class of the training split.
    channels, size, resize, stream, random_crop, mean, std, cache_dir : see `runner.dataset.hub.Hub`.

    Raises
    ------
    ValueError
        There is no such folder, a split without images, a class that training lacks, or images of different sizes and
        no `size`.
    """

    bounds = (0, 255)

    def __init__(
        self,
        *,
        path: str | None = None,
        train_split: str = "train",
        test_split: str | None = "test",
        channels: Literal[1, 3] | None = None,
        size: Count | None = None,
        resize: Count | None = None,
        stream: bool = False,
        random_crop: bool = False,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        cache_dir: str = "~/.cache/runner",
        **settings,
    ):
        super().__init__(**settings)
        own = {"train_split": train_split, "test_split": test_split, "channels": channels, "size": size}
        own |= {"resize": resize, "stream": stream, "random_crop": random_crop, "mean": mean, "std": std}
        self.images = _Folders(path, cache_dir=cache_dir, **own)
        self.name = self.images.name

    def load(self) -> tuple[Split, Split]:
        found = self.images.load()
        for what in ("classes", "names", "fingerprint", "shape", "mean", "std"):
            setattr(self, what, getattr(self.images, what))
        return found


class _Folders(Hub):
    """The same decoding and caching, of files in folders."""

    def __init__(self, path: str | None, **settings):
        self.path = None if path is None else Path(path).expanduser().absolute()
        super().__init__(id="images" if self.path is None else self.path.name, **settings)

    def _files(self) -> dict[str, list[Path]]:
        if self.path is None:
            raise ValueError("dataset.path is not given: the folder that holds one for each split, train and test")
        splits = [split for split in (self.train_split, self.test_split) if split]
        found = {split: self._find(split) for split in splits}
        classes = {split: {file.parent.name for file in files} for split, files in found.items()}
        if other := sorted(set.union(*classes.values()) - classes[self.train_split]):
            raise ValueError(f"{self.path / splits[-1]}: class '{other[0]}' has no image in {self.train_split}")
        return found

    def _find(self, split: str) -> list[Path]:
        root = self.path / split
        if not root.is_dir():
            there = ", ".join(sorted(one.name for one in self.path.glob("*/"))[:5]) if self.path.is_dir() else "nothing"
            raise ValueError(f"dataset.path: there is no folder {root}; in {self.path} there is: {there or 'nothing'}")
        files = sorted(file for file in root.glob("*/*") if file.suffix.lower() in ENDS)
        if not files:
            raise ValueError(f"dataset.path: no images in {root}/<class>/")
        return files

    def _rows(self, split: str, files: dict[str, list[Path]], lazy: bool):
        import datasets

        columns = {
            self.image: [{"bytes": None, "path": str(file)} for file in files[split]],
            self.label: [file.parent.name for file in files[split]],
        }
        features = {self.image: datasets.Image(decode=False), self.label: datasets.Value("string")}
        return datasets.Dataset.from_dict(columns, features=datasets.Features(features))
