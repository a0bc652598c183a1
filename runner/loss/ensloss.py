"""EnsLoss: a random calibrated loss for every step."""

from math import pi
from typing import Annotated

import torch
from torch import Tensor

from runner.core import keyed
from runner.core.batch import Batch, Output
from runner.core.precision import wide
from runner.core.schema import Range
from runner.loss import Loss, remember, soft_targets


class EnsLoss(Loss):
    """EnsLoss (Dai, ICML 2025, arXiv:2409.00908), for two classes: every step draws the derivatives of a convex,
    calibrated loss of the margin instead of having one loss.

        L = g s,   s = z_1 - z_0 for y = 1 and z_0 - z_1 for y = 0
        g = max(-h, -1) / max(s, 1) - 1e-6, not differentiated,   h = max(1 + lam n, 0)^(1 / lam),   n ~ N(0, 1)

    h, the inverse Box-Cox transformation of n, is exp(n) at lam = 0. The max(-h, -1) of a batch are sorted, and the
    smallest margin s gets the most negative one, so that g grows with s as the derivative of a convex function does.
    Only the gradient of L means anything; its value may be negative. Bound, order and tail are those of the authors'
    code (statmlben/ensLoss, losses.py), which has one logit z_1 - z_0.
    The batch is what one forward sees: a micro-batch with train.accumulate, a part with sharpness.m.
    The margin is a score without a probability.
    A soft target q, which the paper does not treat, has the margin (q_1 - q_0) (z_1 - z_0).
    Logits (B, 2) and targets (B,) or (B, 2) give (B,).

    What is random: every training sample has its n, drawn anew when a step with it is done, by a hash of a key that
    counts up and starts from the global generator. So all passes of a step see one loss, and a resumed run the same.

    Parameters
    ----------
    lam : of the transformation, in [-1, 1]. Default 0, as in the authors' experiments on images and tables; their code
        can redraw it from U(-1, 1) every few epochs, which is not here.
    classes, samples : from the data set. Raises ValueError for other than two classes.
    """

    padding = False
    probabilities = False

    def __init__(self, lam: Annotated[float, Range(-1, 1)] = 0.0, *, classes: int, samples: int):
        if classes != 2:
            raise ValueError(f"loss=ensloss is defined for two classes, and this data set has {classes}")
        super().__init__()
        self.lam = lam
        self.register_buffer("keys", torch.randint(2**62, (samples,)))
        self.register_buffer("draws", normal(self.keys))

    def forward(self, out: Output, batch: Batch) -> Tensor:
        z = wide(out.logits)
        q = soft_targets(batch.y, z)
        margin = (q[..., 1] - q[..., 0]) * (z[..., 1] - z[..., 0])
        s, n = margin.detach(), self.draws[batch.index].to(z.dtype)
        lam = torch.as_tensor(self.lam, dtype=n.dtype, device=n.device)
        power = 1 / torch.where(lam == 0, 1.0, lam)
        h = torch.where(lam == 0, n.exp(), (1 + lam * n).clamp_min(0.0) ** power)
        slopes = (-h).clamp_min(-1.0).sort(-1).values
        g = torch.zeros_like(s).scatter(-1, s.sort(dim=-1, stable=True).indices, slopes)
        return (g / s.clamp_min(1.0) - 1e-6) * margin

    def observe(self, out: Output, batch: Batch) -> None:
        keys = self.keys[batch.index] + 1
        remember(self.keys, batch.index, keys)
        remember(self.draws, batch.index, normal(keys))


def normal(keys: Tensor) -> Tensor:
    """(B,) standard normal numbers that depend on the keys alone (Box & Muller)."""
    u = keyed.uniform(0, "ensloss", 0, keys, 2)
    return (-2 * torch.log1p(-u[:, 0])).sqrt() * torch.cos(2 * pi * u[:, 1])
