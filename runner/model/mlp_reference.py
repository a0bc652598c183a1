"""A multilayer perceptron with one logit less than there are classes."""

from torch import Tensor, nn
from torch.nn import functional as F

from runner.core.schema import Count
from runner.model.mlp import Mlp


class Head(nn.Linear):
    """(B, D) -> (B, 1 + out_features): a zero, then the outputs of the linear layer."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(super().forward(x), (1, 0))


class MlpReference(Mlp):
    """The perceptron of `Mlp` with the first class as reference: logits = (0, W h_L + b), W being (classes - 1, D).

    Softmax depends on differences of logits alone, so that this is the same family of classifiers without the redundant
    output. With two classes it is a network with one output z under the logistic loss, exactly:

        cross-entropy of (0, z) at class y  =  log(1 + exp(z)) - y z  =  binary cross-entropy of z at y in {0, 1},

    with the same gradient, the same decision (class 1 where z > 0), and sum_c logit_c^2 = z^2. An `Mlp` with two free
    logits is another parametrisation, which Adam and penalties on logits or weights treat differently.

    Every weight matrix starts from Glorot & Bengio's uniform distribution (AISTATS 2010, equation 16; bound
    sqrt(6 / (inputs + outputs))) and every bias from 0, as in the authors' code of Invariant Risk Minimization
    (arXiv:1907.02893) and Gradient Starvation (arXiv:2011.09468) on Colored MNIST.

    Parameters
    ----------
    shape : tuple of int
        The input shape without the batch, (C, H, W), (D,) or any other.
    classes : int
        The number of logits, the zero included; at least 2.
    hidden : list of int, default [300, 300]
        The width of every hidden layer, from the input on.

    Raises
    ------
    ValueError
        There are fewer than two classes.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, hidden: list[Count] = [300, 300]):  # noqa: B006 (only read)
        if classes < 2:
            raise ValueError(f"mlp_reference needs at least 2 classes, got {classes}; use model=mlp")
        super().__init__(shape, classes, hidden)
        self.head = Head(self.head.in_features, classes - 1)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
