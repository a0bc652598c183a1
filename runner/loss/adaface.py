"""AdaFace."""

from collections.abc import Iterable
from dataclasses import replace
from math import ceil, log, pi

import torch
from torch import Tensor

from runner.core import distributed
from runner.core.batch import Batch, Output
from runner.core.precision import wide
from runner.core.reach import Begin
from runner.core.schema import Fraction, NonNegative, Positive
from runner.loss import Loss
from runner.loss.cosine import Cosines, margin_entropy

EPSILON = 1e-3


class AdaFace(Loss):
    """AdaFace (Kim et al., CVPR 2022, arXiv:2204.00964) with a head of its own.

        L = -log softmax(z')_y,   z_c = s cos theta_c,   cos theta_c = <f, W_c> / (||f|| ||W_c||)
        z'_y = s (cos(theta_y - m k) - m (1 + k)),   k = clip(h (n - mean) / (std + 1e-3), -1, 1)
        z'_c = z_c for c != y

    n = ||f||, kept in [1e-3, 100] and without a gradient, stands for the quality of an image: those of high quality get
    a larger additive margin and a smaller angular one. mean and std (divided by N - 1) are running ones of n, this
    batch included: t_alpha times the batch's plus 1 - t_alpha times what they were, from 20 and 100 on. f are
    the model's features; its own classifier is not used, and a run is measured by z: with m > 0, scores without
    probabilities, as training has a margin and evaluation has none.

    All this is as in the authors' code (mk-minchul/AdaFace, head.py), which also keeps every cosine in [-1 + 1e-3,
    1 - 1e-3] and theta_y - m k in [1e-3, pi - 1e-3]. Its training scripts leave t_alpha at config.py's 0.01; head.py
    alone has 1.

    With `train.accumulate` a micro-batch has mean and std of its own. Several processes average theirs. A soft target
    q, which the paper does not treat, gives the expected loss sum_c q_c L(c), and takes C^2 numbers a sample.
    Logits (..., C) and targets (...) or (..., C) give (...).

    Parameters
    ----------
    m : margin. Default 0.4. h : concentration. Default 0.333. s : scale of the cosines. Default 64.
    t_alpha : default 0.01.
    classes, features : from the data set and the model.
    """

    padding = False

    def __init__(
        self,
        m: NonNegative = 0.4,
        h: NonNegative = 0.333,
        s: Positive = 64.0,
        t_alpha: Fraction = 0.01,
        *,
        classes: int,
        features: int,
    ):
        super().__init__()
        self.m = m
        self.h = h
        self.s = s
        self.t_alpha = t_alpha
        self.cosines = Cosines(features, classes)
        self.register_buffer("mean", torch.tensor(20.0))
        self.register_buffer("std", torch.tensor(100.0))

    @property
    def probabilities(self) -> bool:
        return self.m == 0

    def begins(self, steps: int, steps_per_epoch: int) -> Iterable[Begin]:
        if 0 < self.t_alpha < 1:
            half = ceil(log(0.5) / log(1 - self.t_alpha))
            what = f"half of the running mean and deviation at t_alpha={self.t_alpha:g}"
            yield Begin(what, half, "for the most part they are the 20 and 100 that they start from")

    def head(self, out: Output) -> Output:
        return replace(out, logits=self.s * self.cosines(out.features))

    def forward(self, out: Output, batch: Batch) -> Tensor:
        cosine = (wide(out.logits) / self.s).clamp(-1 + EPSILON, 1 - EPSILON)
        norm, mean, std = self._quality(out)
        k = (self.h * (norm - mean) / (std + EPSILON)).clamp(-1, 1).to(cosine.dtype).unsqueeze(-1)
        angle = (cosine.acos() - self.m * k).clamp(EPSILON, pi - EPSILON)
        return margin_entropy(self.s * cosine, self.s * (angle.cos() - self.m * (1 + k)), batch.y)

    def _quality(self, out: Output) -> tuple[Tensor, Tensor, Tensor]:
        """The norms (...), and the running mean and standard deviation with them in it."""
        norm = torch.linalg.vector_norm(wide(out.features.detach()), dim=-1).clamp(EPSILON, 100)
        mean, std = norm.mean(), norm.std(correction=min(1, norm.numel() - 1))
        rest = 1 - self.t_alpha
        return norm, self.t_alpha * mean + rest * self.mean, self.t_alpha * std + rest * self.std

    @torch.no_grad()
    def observe(self, out: Output, batch: Batch) -> None:
        for buffer, value in zip((self.mean, self.std), self._quality(out)[1:], strict=True):
            buffer.copy_(distributed.sum_(value / distributed.world))
