"""LeNet-5, in the form in which it is used today."""

from torch import nn

from runner.model import Classifier, head
from runner.model.shapes import image


class LeNet(Classifier):
    """LeNet-5: LeCun, Bottou, Bengio and Haffner, Proceedings of the IEEE 1998, section II.B.

    5 x 5 convolution to 6 channels, 2 x 2 pooling, 5 x 5 convolution to 16 channels, 2 x 2 pooling, then layers of 120,
    84 and `classes` units. The features are the 84 activations. 61,706 parameters for one channel and 10 classes.

    What differs from 1998, as is usual: ReLU for the scaled tanh; max pooling for averaging with a trained scale
    and bias and a sigmoid; the second convolution sees all 6 channels, not the paper's table of subsets; a linear
    classifier for the radial basis functions; weights as PyTorch draws them.

    Images below 32 pixels in height or width are padded by 2 zeros on every side, since the paper's input is a 28 x 28
    field in 32 x 32 pixels: 28 x 28 and 32 x 32 both give its shapes (28, 14, 10, 5 pixels a side, then 400 inputs to
    the layer of 120). Without `pad` a 28 x 28 image gives 24, 12, 8, 4 pixels a side, 256 inputs to that layer and
    44,426 parameters: the network of much code on federated learning.

    Parameters
    ----------
    shape : tuple of int
        (C, H, W), H and W at least 12.
    classes : int
        The number of logits.
    pad : bool, default True
        Pad small images as said above.
    heads : int, default None
        How many linear classifiers, of a data set of several tasks: logits are then (B, heads, classes).

    Raises
    ------
    ValueError
        `shape` is not an image or too small.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, pad: bool = True, heads: int | None = None):
        channels, height, width = image(shape, "lenet", smallest=12)
        padding = 2 if pad and min(height, width) < 32 else 0
        rows, columns = (((size + 2 * padding - 4) // 2 - 4) // 2 for size in (height, width))
        body = nn.Sequential(
            nn.Conv2d(channels, 6, 5, padding=padding),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * rows * columns, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
        )
        super().__init__(body, head(84, classes, heads))
