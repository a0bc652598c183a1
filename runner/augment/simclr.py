"""Crops of any size and colours of any shade."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from runner.augment import Augment, Draw, of_images
from runner.core.schema import Fraction, NonNegative, Positive

GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, torchvision's


class SimCLR(Augment):
    """SimCLR's augmentations without blur, as for CIFAR-10 (Chen et al., ICML 2020, arXiv:2002.05709, appendix A, B.9).

    1. A crop of a random share of the area and a random shape (both uniform, the latter in its logarithm), resized to
       the image's size, bilinearly. A side that would be longer than the image's is cut to that, where torchvision
       draws again. 2. A flip, half of the time. 3. With probability 0.8 brightness and contrast times
       1 + u, saturation times 1 + u with u in [-0.8, 0.8] strength, and the hue moved by up to 0.2 strength of the
       circle, in this order, where the authors' order is random too. 4. Grey, a fifth of the time.

    Saturation, hue and grey are for three channels. Values stay in the range that the data set declares.

    Parameters
    ----------
    scale : the smallest share of the area. Default 0.08. ratio : widest over high, at most; high over wide too.
        Default 4/3. flip : default True. strength : of the colours. Default 0.5, the paper's for CIFAR-10; 0: none.
    views : those that it acts on. Default null: all.
    shape, bounds : of an input and its range, from the data set.

    Raises
    ------
    ValueError : inputs that are no images, or have no range.
    """

    def __init__(
        self,
        scale: Fraction = 0.08,
        ratio: Positive = 4 / 3,
        flip: bool = True,
        strength: NonNegative = 0.5,
        views: list[str] | None = None,
        *,
        shape: tuple[int, ...] | None = None,
        bounds: tuple[float, float] | None = None,
    ):
        super().__init__(views)
        of_images(shape)
        if bounds is None:
            raise ValueError("it moves colours within their range, and this data set declares none")
        self.scale, self.ratio, self.flip, self.strength, self.bounds = scale, ratio, flip, strength, bounds

    def pixels(self, x: Tensor, draw: Draw) -> Tensor:
        """(B, C, H, W), of any dtype -> floats in the same range."""
        low, high = self.bounds
        x = self._crop((x.float() - low) / (high - low), draw.uniform("simclr crop", 5))
        return low + (high - low) * self._colours(x, draw.uniform("simclr colours", 6))

    def _crop(self, x: Tensor, u: Tensor) -> Tensor:
        height, width = x.shape[2:]
        area = self.scale + (1 - self.scale) * u[:, 0]
        shape = (math.log(self.ratio) * (2 * u[:, 1] - 1)).exp() * height / width  # in units of the image's sides
        wide, high = ((area * of).sqrt().clamp(max=1) for of in (shape, 1 / shape))
        left, top = (2 * u[:, 2] - 1) * (1 - wide), (2 * u[:, 3] - 1) * (1 - high)
        turned = torch.where(u[:, 4] < 0.5, -1.0, 1.0) if self.flip else torch.ones_like(wide)
        zero = torch.zeros_like(wide)
        affine = torch.stack([wide * turned, zero, left, zero, high, top], 1).view(-1, 2, 3)
        grid = F.affine_grid(affine, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, padding_mode="border", align_corners=False)

    def _colours(self, x: Tensor, u: Tensor) -> Tensor:
        column = u.view(*u.shape, 1, 1, 1)
        by = 1 + 0.8 * self.strength * (2 * column - 1)
        y = (x * by[:, 0]).clamp(0, 1)
        y = torch.lerp(grey(y).mean((-1, -2), keepdim=True), y, by[:, 1]).clamp(0, 1)
        if x.shape[1] == 3:
            y = torch.lerp(grey(y), y, by[:, 2]).clamp(0, 1)
            y = hue(y, 0.2 * self.strength * (2 * column[:, 3] - 1))
        x = torch.where(column[:, 4] < 0.8, y, x)
        return torch.where(column[:, 5] < 0.2, grey(x), x) if x.shape[1] == 3 else x


def grey(x: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W) luma; other numbers of channels: themselves."""
    return (x * x.new_tensor(GREY).view(3, 1, 1)).sum(1, keepdim=True) if x.shape[1] == 3 else x


def hue(x: Tensor, by: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] with the hue moved by a share of the circle, (B, 1, 1, 1) or alike, in the HSV hexcone.

    A channel is v - v s clamp(min(k, 4 - k), 0, 1) with k = (n + 6 h) mod 6, n = 5, 3, 1 of red, green, blue.
    """
    value, least = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    range_ = value - least
    safe = torch.where(range_ > 0, range_, 1.0)
    red, green, blue = x.split(1, 1)
    h = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    k = (x.new_tensor([5.0, 3.0, 1.0]).view(3, 1, 1) + h + 6 * by) % 6
    return value - range_ * torch.minimum(k, 4 - k).clamp(0, 1)
