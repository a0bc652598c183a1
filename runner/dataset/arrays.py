"""NumPy arrays of one's own."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from runner.dataset import Dataset, Split, fixed_test, statistics

KEYS = ("x_train", "y_train", "x_test", "y_test")


class Arrays(Dataset):
    """An .npz file with x_train, y_train and, where there is a test split, x_test and y_test.

    x are (N, D), (N, H, W) or images: (N, C, H, W), or (N, H, W, C) with C of 1 or 3, which become (C, H, W). uint8
    stays so, with bounds (0, 255); all else becomes float32. y are (N,) class ids, or (N,) or (N, K) floats.

    Parameters
    ----------
    path : the file; relative to where the command is given.
    task : classes or regression; a regression target is as it stands in the file.

    Raises
    ------
    ValueError
        No such file or array, or shapes that do not go together. Without x_test a fixed fifth of every class, or of
        every tenth of the samples in the order of their target, is the test split.
    """

    def __init__(self, *, path: str | None = None, task: Literal["classes", "regression"] = "classes", **settings):
        self.task = task
        super().__init__(**settings)
        self.path, self.name = path, "arrays" if path is None else Path(path).stem

    def load(self) -> tuple[Split, Split]:
        if self.path is None:
            raise ValueError(f"dataset.path is not given: an .npz file with {', '.join(KEYS)}")
        try:
            with np.load(Path(self.path).expanduser()) as file:
                there = {key: file[key] for key in KEYS if key in file}
        except FileNotFoundError:
            raise ValueError(f"dataset.path={self.path}: there is no such file") from None
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"dataset.path={self.path}: no .npz file of arrays: {error}") from error
        for key in KEYS[: 4 if {"x_test", "y_test"} & there.keys() else 2]:
            if key not in there:
                raise ValueError(f"dataset.path={self.path}: no array {key}; there are: {', '.join(there) or 'none'}")
        train = self._split(there, "train")
        if "x_test" in there:
            test = self._split(there, "test")
        else:
            y = train.y if train.y.dim() == 1 else train.y[:, 0]
            strata = y if self.task == "classes" else y.argsort(stable=True).argsort() * 10 // len(y)
            kept, held = fixed_test(strata, "arrays test")
            train, test = train.select(kept), train.select(held)
        self.shape, self.bounds = tuple(train.x.shape[1:]), (0, 255) if train.x.dtype == torch.uint8 else None
        self.classes = int(train.y.max()) + 1 if self.task == "classes" else int(train.y[0].numel())
        self.mean, self.std = statistics(train.x)
        return train, test

    def _split(self, arrays: dict[str, np.ndarray], name: str) -> Split:
        x, y = arrays[f"x_{name}"], arrays[f"y_{name}"]
        if x.ndim == 3:
            x = x[:, None]
        elif x.ndim == 4 and x.shape[-1] in (1, 3) and x.shape[1] not in (1, 3):
            x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
        y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
        x = torch.from_numpy(x if x.dtype == np.uint8 else x.astype(np.float32))
        kind = np.int64 if self.task == "classes" else np.float32
        if self.task == "classes" and not (y.astype(kind) == y).all():
            raise ValueError(f"dataset.path={self.path}: y_{name} holds fractions, and dataset.task=classes")
        return Split(x, torch.from_numpy(y.astype(kind)))
