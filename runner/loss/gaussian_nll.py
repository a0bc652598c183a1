"""Gaussian negative log-likelihood with a variance for every sample."""

from dataclasses import replace
from math import pi

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runner.core.batch import Batch, Output
from runner.core.precision import wide
from runner.loss import Loss, errors

LEAST = 1e-6  # added to the variance


class GaussianNLL(Loss):
    """Negative log-likelihood, in nats, of a normal distribution whose mean and variance are learned (Nix & Weigend,
    ICNN 1994).

        L = 1/C * sum_c ( log(2 pi v_c) / 2 + (y_c - m_c)^2 / (2 v_c) ),   v = softplus(a) + 1e-6

    m are the model's outputs and a is linear in its features, a layer of the loss's own beside the model's: outputs
    (..., C) become (..., 2 C), m and then a. softplus and 1e-6 are those of Lakshminarayanan et al., NeurIPS 2017,
    arXiv:1612.01474. A run is measured by the errors of m, and by this NLL.
    Targets (..., C), or (...) where C is 1, give (...).

    Parameters
    ----------
    classes, features : number of targets, from the data set, and the model's features.
    """

    tasks = ("regression",)

    def __init__(self, *, classes: int, features: int):
        super().__init__()
        self.spread = nn.Linear(features, classes)

    def head(self, out: Output) -> Output:
        a = self.spread(out.features.to(self.spread.weight.dtype))
        return replace(out, logits=torch.cat([wide(out.logits), wide(a)], -1))

    def moments(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        mean, a = wide(logits).chunk(2, -1)
        return mean, F.softplus(a) + LEAST

    def forward(self, out: Output, batch: Batch) -> Tensor:
        mean, variance = self.moments(out.logits)
        return ((2 * pi * variance).log() + errors(mean, batch.y).square() / variance).mean(-1) / 2
