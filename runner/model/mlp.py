"""A multilayer perceptron for inputs of any shape."""

from math import prod

from torch import nn

from runner.core.schema import Count
from runner.model import Classifier, head


class Mlp(Classifier):
    """h_0 = x, flattened; h_i = ReLU(W_i h_{i-1} + b_i); logits = W h_L + b. The features are h_L.

    With `hidden=[]` the features are the flattened input and the model is linear: multinomial logistic regression
    under cross-entropy. Weights start as PyTorch's `nn.Linear` draws them.

    Parameters
    ----------
    shape : tuple of int
        The input shape without the batch, (C, H, W), (D,) or any other.
    classes : int
        The number of logits.
    heads : int, default None
        How many linear classifiers, of a data set of several tasks: logits are then (B, heads, classes).
    hidden : list of int, default [128]
        The width of every hidden layer, from the input on.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int,
        hidden: list[Count] = [128],  # noqa: B006 (only read)
        heads: int | None = None,
    ):
        widths = [prod(shape), *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        super().__init__(nn.Sequential(*layers), head(widths[-1], classes, heads))
