"""The residual networks for CIFAR, with parameter-free shortcuts."""

import torch.nn.functional as F
from torch import Tensor, nn

from runner.core.schema import Count
from runner.model import Classifier
from runner.model.shapes import image


class PaddedShortcut(nn.Module):
    """Option A: every `stride`-th pixel, then zeros for the `extra` new channels; no parameters."""

    def __init__(self, stride: int, extra: int):
        super().__init__()
        self.stride = stride
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))


class Block(nn.Module):
    """ReLU(BN(conv(ReLU(BN(conv(x))))) + shortcut(x)), both convolutions 3 x 3, the first with the stride."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if inputs == outputs else PaddedShortcut(stride, outputs - inputs)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(Classifier):
    """The CIFAR networks of He, Zhang, Ren and Sun, CVPR 2016 (arXiv:1512.03385, section 4.2).

    A 3 x 3 convolution to 16 channels with BN and ReLU, three stages of n blocks with 16, 32 and 64 channels (the
    second and third stage start with stride 2), the mean over positions as features (64), a linear classifier:
    6n + 2 layers. Shortcuts are the identity, and option A (subsampled, zero-padded) where the channels double. The
    paper does not say on which side the zero channels go; here they follow the others. 269,722 parameters at depth 20
    for CIFAR-10 (0.27M in the paper).

    Weights start as in He et al. 2015 (arXiv:1502.01852, eq. 10), to which the paper points: normal with variance
    2 / fan_in, biases zero, in the classifier too. The paper does not say that it means fan_in rather than fan_out,
    or what the classifier gets.

    Parameters
    ----------
    shape : (C, H, W) of any size; the paper's is (3, 32, 32). classes : the number of logits.
    depth : int, default 20
        6n + 2: 20, 32, 44, 56, 110 in the paper.

    Raises
    ------
    ValueError
        `shape` is not an image, or `depth` is not 6n + 2.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, depth: Count = 20):
        channels, _, _ = image(shape, "resnet")
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"resnet needs a depth of 6n + 2, such as 20, 32, 44, 56 or 110, got {depth}")
        blocks = []
        inputs = 16
        for outputs, stride in ((16, 1), (32, 2), (64, 2)):
            for i in range((depth - 2) // 6):
                blocks.append(Block(inputs, outputs, stride if i == 0 else 1))
                inputs = outputs
        body = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            *blocks,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        super().__init__(body, nn.Linear(64, classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(self.head.bias)
