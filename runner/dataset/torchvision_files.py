"""What torchvision has downloaded already: MNIST's idx files, CIFAR's pickles, SVHN's matrices."""

import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from runner.dataset import Dataset, Split, statistics


class TorchvisionFiles(Dataset):
    """Images (C, H, W) uint8 and class ids, read by torchvision from where it has put them; nothing is downloaded.

    Parameters
    ----------
    source : the class of `torchvision.datasets`.
    root : the folder that it was given, which holds `MNIST/raw`, `cifar-10-batches-py`, `train_32x32.mat` or the like.

    Raises
    ------
    ValueError
        The files are not there, or damaged.
    """

    bounds = (0, 255)

    def __init__(
        self,
        *,
        source: Literal["MNIST", "FashionMNIST", "KMNIST", "CIFAR10", "CIFAR100", "SVHN"] = "MNIST",
        root: str | None = None,
        **settings,
    ):
        super().__init__(**settings)
        self.source, self.root, self.name = source, root, source

    def load(self) -> tuple[Split, Split]:
        if self.root is None:
            raise ValueError("dataset.root is not given: the folder into which torchvision downloaded")
        train, self.names = self._split(True)
        test, _ = self._split(False)
        self.shape, self.classes = tuple(train.x.shape[1:]), len(self.names)
        self.mean, self.std = statistics(train.x)
        return train, test

    def _split(self, train: bool) -> tuple[Split, list[str]]:
        from torchvision import datasets

        where = {"split": "train" if train else "test"} if self.source == "SVHN" else {"train": train}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = getattr(datasets, self.source)(Path(self.root).expanduser(), download=False, **where)
        except (RuntimeError, OSError, ValueError) as error:
            raise ValueError(f"dataset.root={self.root}: {' '.join(str(error).split())}") from error
        x = found.data if isinstance(found.data, torch.Tensor) else torch.from_numpy(np.asarray(found.data))
        if x.dim() == 3:
            x = x[:, None]
        elif x.shape[-1] == 3:
            x = x.permute(0, 3, 1, 2)
        y = getattr(found, "targets", None)
        y = torch.as_tensor(np.asarray(found.labels if y is None else y), dtype=torch.int64)
        names = getattr(found, "classes", None) or [str(k) for k in range(int(y.max()) + 1)]
        return Split(x.contiguous(), y), list(names)
