"""StableMax cross-entropy."""

import torch
from torch import Tensor
from torch.nn import functional as F

from runner.core.batch import Batch, Output
from runner.core.precision import wide
from runner.loss import Loss, soft_targets


class StableMax(Loss):
    """StableMax cross-entropy (Prieto et al., ICLR 2025, arXiv:2501.04697): a softmax with something slower than exp.

        L = -log(s(z_y) / sum_c s(z_c)),   s(x) = x + 1 for x >= 0,   1 / (1 - x) for x < 0

    It is the cross-entropy of the softmax of sign(z) log(1 + |z|). The authors' code computes it in fp64, here it is
    in fp32 as every loss: p_y is rounded to 1, and the gradient to 0, where the others' s are 1e7 times smaller.
    The measures of a run are of these probabilities, s(z_c) / sum_k s(z_k).
    A soft target q, which the paper does not treat, gives -sum_c q_c log p_c.
    Logits (..., C) and targets (...) or (..., C) give (...).
    """

    def log_probabilities(self, logits: Tensor) -> Tensor:
        z = wide(logits)
        below = z < 0  # not clamp or abs, whose slope at 0 is not 1
        log_s = torch.log1p(z.masked_fill(below, 0.0)) - torch.log1p(-z.masked_fill(~below, 0.0))
        return F.log_softmax(log_s, -1)

    def forward(self, out: Output, batch: Batch) -> Tensor:
        logp = self.log_probabilities(out.logits)
        return -(soft_targets(batch.y, logp) * logp).sum(-1)
