"""Two digits on one canvas: a small set with several labels a sample."""

from typing import Literal

import torch
from torch import Tensor

from runner.core import keyed
from runner.core.schema import Natural
from runner.dataset import Dataset, Split, fingerprint, fixed_test, statistics
from runner.dataset.digits import Digits, read
from runner.dataset.hub import Hub


class MultiDigits(Dataset):
    """Two digits of different classes on one canvas, after MultiMNIST (Sabour et al., NeurIPS 2017, arXiv:1710.09829).

    Every image of the source is on one canvas as the first digit. The second is drawn from the images of the other
    classes, uniformly. Each is put at a random place, `shift` pixels off the middle at most in each direction, and
    where both have ink the darker pixel shows. Inputs are (1, S + 2 shift, S + 2 shift) uint8 for images of S x S, the
    targets (10,) of 0 and 1 with two ones. Training canvases are of training images, test canvases of test images, and
    both are the same for every seed. The paper pairs every digit with 1,000 others; here it is one.

    Parameters
    ----------
    source : digits, scikit-learn's 8 x 8 (see `runner.dataset.digits`), or mnist. Default digits: 1,438 and 359
        canvases of 16 x 16.
    shift : default 4, the paper's, for which MNIST's canvases are 36 x 36.
    data_dir, cache_dir : as for dataset=mnist, where that is the source.
    """

    task = "multilabel"
    classes = 10
    names = [str(digit) for digit in range(10)]

    def __init__(
        self,
        *,
        source: Literal["digits", "mnist"] = "digits",
        shift: Natural = 4,
        data_dir: str | None = None,
        cache_dir: str = "~/.cache/runner",
        **settings,
    ):
        super().__init__(**settings)
        self.source, self.shift = source, shift
        self.bounds = Hub.bounds if source == "mnist" else Digits.bounds
        self.paths = {"data_dir": data_dir, "cache_dir": cache_dir}

    @property
    def mnist(self) -> Hub:
        return Hub(id="ylecun/mnist", name="mnist", config="mnist", **self.paths)

    @property
    def local(self) -> bool:
        return self.source != "mnist" or self.mnist.local

    def load(self) -> tuple[Split, Split]:
        if self.source == "mnist":
            train, test = self.mnist.load()
        else:
            whole = Split(*read())
            kept, held = fixed_test(whole.y, "digits test")
            train, test = whole.select(kept), whole.select(held)
        train, test = (self._pairs(part.x, part.y, name) for part, name in ((train, "train"), (test, "test")))
        self.shape = tuple(train.x.shape[1:])
        self.mean, self.std = statistics(train.x)
        self.fingerprint = fingerprint(train.x, train.y, test.x, test.y)
        return train, test

    def _pairs(self, x: Tensor, y: Tensor, part: str) -> Split:
        draw = keyed.generator(0, f"multi_digits {part}")
        second = torch.empty_like(y)
        for label in range(self.classes):
            here, others = (y == label).nonzero().flatten(), (y != label).nonzero().flatten()
            second[here] = others[torch.from_numpy(draw.integers(0, len(others), len(here)))]
        places = torch.from_numpy(draw.integers(0, 2 * self.shift + 1, (2, len(y), 2)))
        canvases = torch.maximum(self._place(x, places[0]), self._place(x[second], places[1]))
        targets = torch.zeros(len(y), self.classes).scatter_(1, torch.stack([y, y[second]], 1), 1.0)
        return Split(canvases, targets)

    def _place(self, x: Tensor, corners: Tensor) -> Tensor:
        """Each image on an empty canvas, its upper left corner at `corners`, (N, 2) rows and columns."""
        side = x.shape[-1]
        canvases = x.new_zeros(len(x), 1, side + 2 * self.shift, side + 2 * self.shift)
        for row in range(2 * self.shift + 1):
            for column in range(2 * self.shift + 1):
                here = ((corners[:, 0] == row) & (corners[:, 1] == column)).nonzero().flatten()
                canvases[here, :, row : row + side, column : column + side] = x[here]
        return canvases
