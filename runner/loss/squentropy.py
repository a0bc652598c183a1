"""Squentropy."""

from torch import Tensor
from torch.nn import functional as F

from runner.core.batch import Batch, Output
from runner.core.precision import wide
from runner.loss import Loss, soft_targets


class Squentropy(Loss):
    """Squentropy (Hui, Belkin & Wright, ICML 2023, arXiv:2302.03952): cross-entropy plus the mean square of the wrong
    classes' logits.

        L = -log p_y + 1/(C - 1) sum_{c != y} z_c^2,   p = softmax(z)

    It has no parameters and is trained with the settings of cross-entropy. The definition was checked against public
    ports, not against the text of the paper.
    A soft target q, which the paper does not treat, gives the expected loss sum_c q_c L(c), as in mixup.
    Logits (..., C) and targets (...) or (..., C) give (...).
    """

    def forward(self, out: Output, batch: Batch) -> Tensor:
        logits = wide(out.logits)
        q = soft_targets(batch.y, logits)
        square = ((1 - q) * logits.square()).sum(-1) / (logits.shape[-1] - 1)
        return square - (q * F.log_softmax(logits, -1)).sum(-1)
