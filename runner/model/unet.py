"""A U-Net for small images."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runner.core.batch import Output
from runner.core.schema import Count
from runner.model.shapes import image


def double(inputs: int, outputs: int) -> nn.Sequential:
    """Twice a 3 x 3 convolution, batch normalisation and ReLU."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """A U-Net (Ronneberger, Fischer & Brox, MICCAI 2015, arXiv:1505.04597) for targets with a class for each pixel:
    logits (B, H, W, C). On the way down `levels` - 1 times a maximum over 2 x 2, with twice the channels after it; on
    the way up nearest pixels twice, joined to what was there on the way down. Unlike the paper's it pads, so that sizes
    stay, normalises batches, and goes up without weights. Features are (B, H, W, width).

    Parameters
    ----------
    shape : (channels, height, width). classes : of pixels. width : channels of the first level. Default 16.
    levels : default 3.

    Raises
    ------
    ValueError
        No images, or sides that the levels do not halve.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, width: Count = 16, levels: Count = 3):
        super().__init__()
        channels, *sides = image(shape, "unet", 2)
        if any(side % 2 ** (levels - 1) for side in sides):
            raise ValueError(
                f"unet halves sides {levels - 1} times, and {sides[0]} x {sides[1]} are no multiple of that"
            )
        widths = [width * 2**level for level in range(levels)]
        self.down = nn.ModuleList(double(*pair) for pair in zip([channels, *widths], widths))
        self.up = nn.ModuleList(double(below + own, own) for own, below in zip(widths, widths[1:]))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Output:
        kept = []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            kept.append(x)
        for own, block in zip(reversed(kept[:-1]), reversed(self.up), strict=True):
            x = block(torch.cat([own, F.interpolate(x, scale_factor=2.0, mode="nearest")], 1))
        features = x.movedim(1, -1)
        return Output(self.head(features), features)
