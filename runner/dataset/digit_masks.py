"""Two digits on one canvas, and of every pixel which one it belongs to: a small set for segmentation."""

from typing import Literal

import torch
from torch import Tensor

from runner.core import keyed
from runner.core.schema import Fraction
from runner.dataset import IGNORE, Dataset, Split, fingerprint, fixed_test, statistics
from runner.dataset.digits import Digits, read


class DigitMasks(Dataset):
    """Two of scikit-learn's 8 x 8 digits on a canvas of 16 x 16, each at a random place: inputs (1, 16, 16) uint8,
    targets (16, 16). A pixel's class is 0, background, or 1 + the digit whose ink there is more than `ink` of the
    darkest; where both digits have so much it is of neither and does not count. Every image is on one canvas as the
    first digit, the second is any other of the same split. Canvases are the same for every seed. 11 classes; the best
    epoch is that of the largest `miou`.

    Parameters
    ----------
    ink : default 0.3. per : see `Dataset`.
    """

    classes = 11
    shape = (1, 16, 16)
    places = (16, 16)
    bounds = Digits.bounds
    names = ["background", *Digits.names]
    first = "miou"

    def __init__(self, *, ink: Fraction = 0.3, per: Literal["target", "sample"] = "target", **settings):
        super().__init__(**settings)
        self.ink, self.per = ink, per

    def load(self) -> tuple[Split, Split]:
        whole = Split(*read())
        parts = zip(fixed_test(whole.y, "digits test"), ("train", "test"), strict=True)
        train, test = (self._canvases(whole.select(rows), name) for rows, name in parts)
        self.mean, self.std = statistics(train.x)
        self.fingerprint = fingerprint(train.x, train.y, test.x, test.y)
        return train, test

    def _canvases(self, split: Split, part: str) -> Split:
        draw, count = keyed.generator(0, f"digit_masks {part}"), len(split)
        second = (torch.arange(count) + torch.from_numpy(draw.integers(1, count, count))) % count
        corners = torch.from_numpy(draw.integers(0, 9, (2, count, 2)))
        first, other = (self._placed(split.x[rows], at) for rows, at in zip((torch.arange(count), second), corners))
        has, had = (canvas.squeeze(1) > self.ink * self.bounds[1] for canvas in (first, other))
        y = torch.zeros(count, 16, 16, dtype=torch.int64)
        y = torch.where(has, 1 + split.y.view(-1, 1, 1), y)
        y = torch.where(had, 1 + split.y[second].view(-1, 1, 1), y)
        return Split(torch.maximum(first, other), y.masked_fill(has & had, IGNORE))

    @staticmethod
    def _placed(x: Tensor, corners: Tensor) -> Tensor:
        """Each image on an empty canvas, its upper left corner at `corners`, (N, 2)."""
        canvases = x.new_zeros(len(x), 1, 16, 16)
        for canvas, image, (row, column) in zip(canvases, x, corners.tolist(), strict=True):
            canvas[:, row : row + 8, column : column + 8] = image
        return canvases
