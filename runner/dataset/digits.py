"""Handwritten digits that come with scikit-learn."""

import importlib.util
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from runner.dataset import Dataset, Split, fingerprint, fixed_test, statistics


class Digits(Dataset):
    """1,797 handwritten digits of 8x8 pixels with 17 grey levels, 0..16: inputs (1, 8, 8) uint8, 10 classes.

    The test part of the Optical Recognition of Handwritten Digits set (Alpaydin & Kaynak, UCI 1998), as bundled with
    scikit-learn. It has no test split of its own: a fixed fifth of every class is the test split, whatever the seed.
    Mean and standard deviation are those of the other four fifths.
    Raises ValueError where scikit-learn is not installed.
    """

    classes = 10
    shape = (1, 8, 8)
    bounds = (0, 16)
    names = [str(digit) for digit in range(10)]

    def __init__(self, **settings):
        super().__init__(**settings)

    def load(self) -> tuple[Split, Split]:
        x, y = read()
        kept, held = fixed_test(y, "digits test")
        self.mean, self.std = statistics(x[kept])
        self.fingerprint = fingerprint(x, y)
        return Split(x, y).select(kept), Split(x, y).select(held)


@lru_cache(maxsize=1)
def read() -> tuple[Tensor, Tensor]:
    """All images (1797, 1, 8, 8) uint8 and labels (1797,), without the second that importing scikit-learn takes."""
    package = importlib.util.find_spec("sklearn")
    if package is None:
        raise ValueError("dataset=digits is part of scikit-learn, which is not installed: pip install scikit-learn")
    path = Path(package.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    rows = torch.from_numpy(np.loadtxt(path, delimiter=","))
    return rows[:, :-1].to(torch.uint8).view(-1, 1, 8, 8), rows[:, -1].long()
