"""The Z-loss of the spherical family: a loss of standardised logits."""

from torch import Tensor
from torch.nn import functional as F

from runner.core.batch import Batch, Output
from runner.core.precision import wide
from runner.core.schema import Positive
from runner.loss import Loss, soft_targets


class SphericalZ(Loss):
    """Z-loss (de Brebisson & Vincent, 2016, arXiv:1604.08859). Not the penalty on the log-partition function that is
    called z-loss too: that is hook=logit_z.

        L = 1/a log(1 + exp(a (b - s_y))),   s = (z - mean z) / std z,   mean and std over the classes

    Shifting the logits or scaling them by a positive number changes nothing, so that they are scores and no
    log-probabilities. s_y is at most sqrt(C - 1). With equal
    logits s is 0: the variance has 1e-24 added to it, as the authors' code (pascal20100/factored_output_layer) adds
    1e-12 to std. That code has the loss for a = 1 and b = 0; a and b were checked against a public summary.
    A soft target q, which the paper does not treat, gives the expected loss sum_c q_c L(c), as in mixup.
    Logits (..., C) and targets (...) or (..., C) give (...).

    Parameters
    ----------
    a, b : default 1 and 0, as in the authors' example. The paper tunes both.
    """

    probabilities = False

    def __init__(self, a: Positive = 1.0, b: float = 0.0):
        super().__init__()
        self.a = a
        self.b = b

    def forward(self, out: Output, batch: Batch) -> Tensor:
        z = wide(out.logits)
        away = z - z.mean(-1, keepdim=True)
        s = away / (away.square().mean(-1, keepdim=True) + 1e-24).sqrt()
        return (soft_targets(batch.y, z) * F.softplus(self.a * (self.b - s))).sum(-1) / self.a
