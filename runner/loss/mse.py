"""Rescaled square loss."""

from torch import Tensor

from runner.core.batch import Batch, Output
from runner.core.precision import wide
from runner.core.schema import Positive
from runner.loss import Loss, soft_targets


class Square(Loss):
    """Square loss on the raw outputs z, no softmax (Hui & Belkin, ICLR 2021, arXiv:2006.07322), for class targets.

        L = 1/C * (k (z_y - M)^2 + sum_{c != y} z_c^2)

    k = M = 1 is the mean square to the one-hot target. A soft target q, which the paper does not treat, gives the
    expected loss sum_c q_c L(c), as in mixup. Where k and M stand and the division by C were checked against two
    public ports of the loss, not against the text of the paper. z are scores, not log-probabilities.
    Logits (..., C) and targets (...) or (..., C) give (...).

    Parameters
    ----------
    k : weight of the true class. Default 1. M : target value of the true class. Default 1.
        The authors leave both at 1 with few classes and rescale from 42 classes on, where plain square loss trains
        slowly: by those ports k = 1, M = 15 below 1000 classes and k = 15, M = 30 for ImageNet's 1000. The learning
        rate has to be tuned anew.
    """

    probabilities = False

    def __init__(self, k: Positive = 1.0, M: Positive = 1.0):
        super().__init__()
        self.k = k
        self.M = M

    def forward(self, out: Output, batch: Batch) -> Tensor:
        logits = wide(out.logits)
        q = soft_targets(batch.y, logits)
        return (self.k * q * (logits - self.M).square() + (1 - q) * logits.square()).mean(-1)
