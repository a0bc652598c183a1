"""VGG with batch normalisation, in the form that CIFAR papers train."""

from typing import Literal

from torch import nn

from runner.core.schema import OpenFraction
from runner.model import Classifier
from runner.model.resnet_imagenet import whole
from runner.model.shapes import image

NAMES = {11: "A", 13: "B", 16: "D", 19: "E"}  # columns of the paper's table 1


class VGG(Classifier):
    """The convolutions of Simonyan and Zisserman, ICLR 2015 (arXiv:1409.1556, table 1), each with batch normalisation
    (Ioffe and Szegedy, ICML 2015), and one linear classifier of the mean over positions (512 features).

    The paper's three fully connected layers are for images of 224 pixels; what trains on CIFAR under its name has one.
    14,728,266 parameters at depth 16 with ten classes. Layers are torchvision's, weights start as PyTorch draws them.

    Parameters
    ----------
    shape : (C, H, W), at least 32 pixels high and wide: five poolings halve it. classes : the number of logits.
    depth : 11, 13, 16 or 19, counted as in the paper, with two layers that are not here. Default 16.
    dropout : of the features. Default 0.

    Raises
    ------
    ValueError
        `shape` is not an image, or too small.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int,
        depth: Literal[11, 13, 16, 19] = 16,
        dropout: OpenFraction = 0.0,
    ):
        from torchvision.models.vgg import cfgs, make_layers

        channels, _, _ = image(shape, "vgg", 32)
        layers = make_layers(cfgs[NAMES[depth]], batch_norm=True)
        if channels != 3:
            layers[0] = nn.Conv2d(channels, 64, 3, padding=1)
        body = nn.Sequential(whole(layers), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout))
        super().__init__(body, nn.Linear(512, classes))
