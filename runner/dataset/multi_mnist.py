"""Two digits on one canvas, each to be read: a small set with two tasks."""

import torch
from torch import Tensor

from runner.core import keyed
from runner.dataset import Split
from runner.dataset.multi_digits import MultiDigits


class MultiMnist(MultiDigits):
    """MultiMNIST as a problem of two tasks: which digit is in the upper left and which in the lower right corner (Sener
    & Koltun, NeurIPS 2018, arXiv:1810.04650, section 5.1, after Sabour et al., NeurIPS 2017).

    Every image of the source is in the upper left corner of one canvas. The one in the lower right corner, `2 shift`
    pixels down and to the right, is drawn from all images, uniformly; where both have ink the darker pixel shows.
    Inputs are (1, S + 2 shift, S + 2 shift) uint8 for images of S x S, targets (2,) class ids. Training canvases are of
    training images, test canvases of test images, and both are the same for every seed. Sener & Koltun scale the
    canvas of 36 x 36 to 28 x 28; here it stays.

    Parameters
    ----------
    source : mnist, or digits, scikit-learn's 8 x 8. Default mnist.
    shift : default 4, for which MNIST's canvases are 36 x 36; those of `digits` are 16 x 16, and nothing overlaps.
    data_dir, cache_dir : as for dataset=mnist, where that is the source.
    """

    task = "tasks"
    tasks = ("upper_left", "lower_right")

    def _pairs(self, x: Tensor, y: Tensor, part: str) -> Split:
        second = torch.from_numpy(keyed.generator(0, f"multi_mnist {part}").integers(0, len(y), len(y)))
        corners = torch.zeros(len(y), 2, dtype=torch.int64)
        first, other = self._place(x, corners), self._place(x[second], corners + 2 * self.shift)
        return Split(torch.maximum(first, other), torch.stack([y, y[second]], 1))
