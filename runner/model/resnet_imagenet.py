"""The residual networks for ImageNet, and the forms of them that CIFAR papers train."""

from typing import Literal

from torch import nn

from runner.model import Classifier
from runner.model.shapes import image


class ImageNetResNet(Classifier):
    """The ImageNet networks of He, Zhang, Ren and Sun, CVPR 2016 (arXiv:1512.03385, table 1), as torchvision has them.

    Four stages of 64, 128, 256 and 512 channels (times four behind bottlenecks), projections where the channels
    change (option B), the stride of a bottleneck in its 3 x 3 convolution, the mean over positions as features. The
    stem is a 7 x 7 convolution with stride 2 and a pooling with stride 2 (`imagenet`), or one 3 x 3 convolution with
    stride 1, as papers on small images have it without saying so (`cifar`): 11,173,962 parameters at depth 18 with ten
    classes. Weights start as torchvision's: convolutions normal with variance 2 / fan_out, the classifier as
    `nn.Linear` draws it.

    Parameters
    ----------
    shape : (C, H, W) of any size. classes : the number of logits.
    depth : 18, 34 (basic blocks), 50 or 101 (bottlenecks). Default 18.
    stem : default auto: `cifar` below 64 pixels, in height or width, else `imagenet`.
    zero_gamma : whether the scale of every block's last normalisation starts at 0, so that blocks start as the identity
        (Goyal et al. 2017, arXiv:1706.02677, section 5.1). Default False.

    Raises
    ------
    ValueError
        `shape` is not an image.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int,
        depth: Literal[18, 34, 50, 101] = 18,
        stem: Literal["auto", "cifar", "imagenet"] = "auto",
        zero_gamma: bool = False,
    ):
        from torchvision.models import resnet

        channels, height, width = image(shape, "resnet")
        made = getattr(resnet, f"resnet{depth}")(num_classes=classes, zero_init_residual=zero_gamma)
        small = stem == "cifar" or (stem == "auto" and min(height, width) < 64)
        if small or channels != 3:
            size, stride, padding = (3, 1, 1) if small else (7, 2, 3)
            made.conv1 = nn.Conv2d(channels, 64, size, stride, padding, bias=False)
            nn.init.kaiming_normal_(made.conv1.weight, mode="fan_out", nonlinearity="relu")
        if small:
            made.maxpool = nn.Identity()
        head, made.fc = made.fc, nn.Identity()
        super().__init__(whole(made), head)


def whole(model: nn.Module) -> nn.Module:
    """The model, no layer of which writes over its input: what is kept of a pass stays as it was."""
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return model
