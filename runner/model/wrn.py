"""Wide residual networks."""

import torch.nn.functional as F
from torch import Tensor, nn

from runner.core.schema import Count, OpenFraction
from runner.model import Classifier
from runner.model.shapes import image


class WideBlock(nn.Module):
    """The basic wide block, pre-activated: conv(dropout(ReLU(BN(conv(a))))) + shortcut, with a = ReLU(BN(x)).

    The shortcut is x itself, or, where the channels change, a 1 x 1 convolution of a with the block's stride, as in
    the authors' published code.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.bn1(x))
        y = self.conv2(self.dropout(F.relu(self.bn2(self.conv1(a)))))
        return y + (x if self.shortcut is None else self.shortcut(a))


class WideResNet(Classifier):
    """WRN-depth-widen of Zagoruyko and Komodakis, BMVC 2016 (arXiv:1605.07146, table 1).

    A 3 x 3 convolution to 16 channels, three stages of n = (depth - 4) / 6 blocks with 16k, 32k and 64k channels for
    k = `widen` (the second and third stage start with stride 2), BN, ReLU, the mean over positions as features (64k),
    a linear classifier. For CIFAR-10 WRN-28-10 has 36,479,194 parameters and WRN-16-8 has 10,961,370 (36.5M and 11.0M
    in the paper).

    Weights start as in the authors' published code (szagoruyko/wide-residual-networks, models/utils.lua): convolutions
    normal with variance 2 / fan_in, the classifier's weight as `nn.Linear` draws it, its bias zero. It was fan_out
    there before September 2016 (commit ea02518, "fix MSRA init"). Scales of BN start at 1, as PyTorch has it; in the
    code uniform in [0, 1), as Lua's Torch had it. Its later PyTorch version draws the classifier like a convolution.

    Parameters
    ----------
    shape : (C, H, W) of any size; the paper's is (3, 32, 32). classes : the number of logits.
    depth : int, default 28
        6n + 4: 16, 22, 28, 40 in the paper.
    widen : int, default 10
        The factor k on the channels.
    dropout : float, default 0.0
        Probability in [0, 1) of zeroing an input of a block's second convolution; the paper takes 0.3 on CIFAR and 0.4
        on SVHN where it uses dropout.

    Raises
    ------
    ValueError
        `shape` is not an image, or `depth` is not 6n + 4.
    """

    def __init__(
        self, shape: tuple[int, ...], classes: int, depth: Count = 28, widen: Count = 10, dropout: OpenFraction = 0.0
    ):
        channels, _, _ = image(shape, "wrn")
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"wrn needs a depth of 6n + 4, such as 16, 22, 28 or 40, got {depth}")
        blocks = []
        inputs = 16
        for outputs, stride in ((16 * widen, 1), (32 * widen, 2), (64 * widen, 2)):
            for i in range((depth - 4) // 6):
                blocks.append(WideBlock(inputs, outputs, stride if i == 0 else 1, dropout))
                inputs = outputs
        body = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1, bias=False),
            *blocks,
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        super().__init__(body, nn.Linear(inputs, classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(self.head.bias)
