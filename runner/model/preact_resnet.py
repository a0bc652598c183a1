"""Residual networks with normalisation and activation before every convolution."""

from torch import nn

from runner.core.schema import Count
from runner.model import Classifier
from runner.model.shapes import image
from runner.model.wrn import WideBlock


class PreActResNet(Classifier):
    """Pre-activated blocks (He et al., ECCV 2016, arXiv:1603.05027) in four stages of 64, 128, 256 and 512 channels.

    A 3 x 3 convolution to 64 channels, `blocks` basic blocks in every stage (the later ones start with stride 2), BN,
    ReLU, the mean over positions as features (512), a linear classifier. The paper trains other depths; PreActResNet-18
    (two blocks a stage) is what mixup and its kin are measured with. It ends with the normalisation of the paper,
    which some public code under this name leaves out. 11,172,170 parameters with ten classes. Convolutions start normal
    with variance 2 / fan_in, the classifier as `nn.Linear` draws it.

    Parameters
    ----------
    shape : (C, H, W) of any size. classes : the number of logits. blocks : in each stage. Default 2.

    Raises
    ------
    ValueError
        `shape` is not an image.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, blocks: Count = 2):
        channels, _, _ = image(shape, "preact_resnet")
        layers, inputs = [nn.Conv2d(channels, 64, 3, padding=1, bias=False)], 64
        for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            for i in range(blocks):
                layers.append(WideBlock(inputs, outputs, stride if i == 0 else 1, dropout=0.0))
                inputs = outputs
        layers += [nn.BatchNorm2d(inputs), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        super().__init__(nn.Sequential(*layers), nn.Linear(inputs, classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
