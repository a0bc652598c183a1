"""Two small convolutions, for images of any size: the network of the federated averaging paper."""

from math import ceil

from torch import nn

from runner.core.schema import Count
from runner.model import Classifier
from runner.model.shapes import image

CELLS = 8  # at most this many positions a side enter the hidden layer: all of them up to 35 pixels


class Cnn(Classifier):
    """Twice (5 x 5 convolution, ReLU, 2 x 2 max pooling), a hidden layer with ReLU, a linear classifier.

    With the defaults this is the MNIST network of McMahan, Moore, Ramage, Hampson and Aguera y Arcas, AISTATS 2017
    (arXiv:1602.05629, section 3): 32 and 64 channels, 512 hidden units, 1,663,370 parameters at 28 x 28 and 10 classes.
    The paper names neither the padding nor an activation after the convolutions; its count settles the padding (the
    convolutions keep the size), and ReLU is the choice made here. Weights start as PyTorch draws them.

    Where the second pooling leaves more than 8 positions a side (images of 36 pixels and more), neighbouring positions
    are averaged until at most 8 are left, so that the hidden layer does not grow with the image. That step is this
    project's, not the paper's; up to 35 pixels it does nothing.

    Parameters
    ----------
    shape : tuple of int
        (C, H, W), H and W at least 4.
    classes : int
        The number of logits.
    widths : list of two int, default [32, 64]
        Channels of the two convolutions.
    hidden : int, default 512
        Width of the hidden layer; its activations are the features.

    Raises
    ------
    ValueError
        `shape` is not an image or too small, or `widths` does not name two widths.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, widths: list[Count] = [32, 64], hidden: Count = 512):  # noqa: B006 (only read)
        channels, height, width = image(shape, "cnn", smallest=4)
        if len(widths) != 2:
            raise ValueError(f"cnn has two convolutions: widths must name two widths such as [32, 64], got {widths}")
        first, second = widths
        sides = (height // 4, width // 4)
        window = tuple(ceil(side / CELLS) for side in sides)
        cells = ceil(sides[0] / window[0]) * ceil(sides[1] / window[1])
        body = nn.Sequential(
            nn.Conv2d(channels, first, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            # not AdaptiveAvgPool2d, whose backward pass has no deterministic form on a GPU
            nn.AvgPool2d(window, ceil_mode=True) if window != (1, 1) else nn.Identity(),
            nn.Flatten(),
            nn.Linear(second * cells, hidden),
            nn.ReLU(),
        )
        super().__init__(body, nn.Linear(hidden, classes))
