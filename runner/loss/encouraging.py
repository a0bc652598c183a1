"""Encouraging loss."""

import torch
from torch import Tensor
from torch.nn import functional as F

from runner.core.batch import Batch, Output
from runner.core.precision import wide
from runner.core.schema import OpenFraction
from runner.loss import Loss, soft_targets


class Encouraging(Loss):
    """Encouraging loss (Zhao et al., AAAI 2022, arXiv:2110.06537): cross-entropy with a bonus for samples that are
    classified well already, which keeps their gradient from vanishing.

        L = -log p_y + log(1 - p_y)                                   p_y <= log_end
          = -log p_y + log(1 - e) - (p_y - e) / (1 - e),   e = log_end,   beyond,   p = softmax(z)

    From `log_end` on the bonus goes on linearly, its "conservative" form, as in the authors' code
    (lancopku/well-classified-examples-are-underestimated, EncouragingLoss.py); the whole logarithm, log_end = 1, has no
    lower bound and is not here. The loss may be negative.
    A soft target q gives the expected loss sum_c q_c L(c), as the authors' code does for label smoothing.
    Logits (..., C) and targets (...) or (..., C) give (...).

    Parameters
    ----------
    log_end : where the logarithm ends, in [0, 1). Default 0.75, the authors'; they advise a lower one where accuracy is
        low.
    """

    def __init__(self, log_end: OpenFraction = 0.75):
        super().__init__()
        self.log_end = log_end

    def forward(self, out: Output, batch: Batch) -> Tensor:
        logp = F.log_softmax(wide(out.logits), -1)
        p = logp.exp()
        beyond = (p - self.log_end).clamp_min(0.0)
        bonus = torch.log1p(beyond - p) - beyond / (1 - self.log_end)
        return (soft_targets(batch.y, logp) * (bonus - logp)).sum(-1)
