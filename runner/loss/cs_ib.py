"""Cauchy-Schwarz information bottleneck."""

from math import log

import torch
from torch import Tensor

from runner.core.batch import Batch, Output
from runner.core.precision import wide
from runner.core.schema import NonNegative, Positive
from runner.loss import Loss

SMALL = 1e-6  # the least normaliser, in nats: where the inputs or the features are all alike


class CSIB(Loss):
    """Information bottleneck for regression with Cauchy-Schwarz divergences (Yu et al., ICLR 2024, arXiv:2404.17951).

        L = D(p(y|x); q(z|x)) + beta * I(x; f) / sqrt(I(x; x) I(f; f)),   in bits, of the batch

        D = log2 S(yy) + log2 S(zz) - 2 log2 S(zy),   S(ab) = sum_i [sum_j Kx_ij Kab_ij / (sum_j Kx_ij)^2]
        I(a; b) = log2 (sum_ij Ka_ij Kb_ij / N^2) + log2 (sum Ka sum Kb / N^4) - 2 log2 (1' Ka Kb 1 / N^3)

    K are Gaussian Gram matrices of the batch, exp(-d^2 / (2 sigma^2)): of the inputs x as the network sees them, of its
    features f, of the targets y, the outputs z, and, K_zy, between outputs and targets. D is the estimator of the
    conditional Cauchy-Schwarz divergence (Proposition 1) and I the quadratic mutual information, with one kernel width,
    as in the authors' code (SJYuCNEL/Cauchy-Schwarz-Information-Bottleneck, loss_cs.py).

    That code has two slips, which are not here. In S it divides by sum_j Kx_ij^2, where the proposition has the square
    of the sum, of two density estimates. And it passes y and z as vectors (N,), of which its Gram matrix makes
    constants, so that D is the sum of squared errors times log2 e; here they are the (N, 1) that its definition asks
    for. Every sample of the batch has the same loss, so that their mean is L, and a weight scales it. With
    `train.accumulate` or several devices the matrices are those of a micro-batch. The network is deterministic, as in
    the authors' training. With inputs of many dimensions and sigma = 1 every sample is far from every other, and D
    becomes -2 log2 of the mean of K_zy over the pairs (i, i).

    Parameters
    ----------
    beta : default 0.01, that of the code, which sweeps it over 0 and 1e-4 to 1. 0 is D alone.
    sigma : kernel width, for standardised inputs and targets. Default 1.
    """

    tasks = ("regression",)
    padding = False
    alike = True

    def __init__(self, beta: NonNegative = 0.01, sigma: Positive = 1.0):
        super().__init__()
        self.beta = beta
        self.sigma = sigma

    def forward(self, out: Output, batch: Batch) -> Tensor:
        z = wide(out.logits).squeeze(-1)
        y = batch.y.to(z.dtype)
        log_x, log_f = (self._kernel(part.flatten(1).to(z.dtype)) for part in (batch.x, out.features))
        x, f = log_x.exp(), log_f.exp()
        rows_x, rows_f = x.sum(-1), f.sum(-1)
        square = rows_x.square().unsqueeze(-1)
        yy, zz = ((x / square * self._pairs(a, a).exp()).sum().log() for a in (y, z))
        # an output may be so far from the targets that K_zy is 0 in floating point
        zy = (log_x - square.log() + self._pairs(z, y)).flatten().logsumexp(0)
        own = information(x.square().sum(), rows_x, rows_x) * information(f.square().sum(), rows_f, rows_f)
        shared = information((x * f).sum(), rows_x, rows_f) / own.clamp_min(SMALL**2).sqrt()
        return ((yy + zz - 2 * zy) / log(2) + self.beta * shared).expand(z.shape)

    def _kernel(self, a: Tensor) -> Tensor:
        """The logarithm of the Gram matrix (N, N) of (N, D). That is 1 where i = j, so that no sum over a row is 0."""
        a = (a - a.mean(0)) / (2**0.5 * self.sigma)
        square = a.square().sum(-1)
        return torch.addmm(square.unsqueeze(-1) + square.unsqueeze(-2), a, a.mT, beta=-1, alpha=2).clamp_max(0)

    def _pairs(self, a: Tensor, b: Tensor) -> Tensor:
        """The logarithm of the Gram matrix between (N,) and (N,)."""
        return (a.unsqueeze(-1) - b.unsqueeze(-2)).square() / (-2 * self.sigma**2)


def information(joint: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """I(a; b) in nats, of the sum of Ka * Kb and the row sums (N,) of Ka and Kb, which are symmetric. The powers of N
    cancel: -2 - 4 + 2 * 3 = 0."""
    return (joint * a.sum() * b.sum() / (a * b).sum().square()).log()
