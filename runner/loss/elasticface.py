"""ElasticFace."""

from dataclasses import replace
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from runner.core.batch import Batch, Output
from runner.core.dropout import Masks, uniform
from runner.core.precision import wide
from runner.core.schema import NonNegative, Positive, When
from runner.loss import Loss, soft_targets
from runner.loss.cosine import Cosines, margin_entropy

EDGE = 1e-6  # cosines stay off -1 and 1, where acos has an infinite slope


class ElasticFace(Loss):
    """Margin softmax with random margins (Boutros et al., CVPR workshops 2022, arXiv:2109.09416), and its own head.

        L = -log softmax(z')_y,   z_c = s cos theta_c,   cos theta_c = <f, W_c> / (||f|| ||W_c||)
        arc:  z'_y = s cos(theta_y + m_i)        cos:  z'_y = s (cos theta_y - m_i)        z'_c = z_c for c != y
        m_i ~ N(m, sigma^2)

    Every sample has a new margin in every step. With sigma = 0 it is ArcFace or CosFace. With `plus` the margins of a
    batch are dealt by difficulty: the smallest to the sample with the largest cos theta_y, and so on. That is the
    paper's description; the authors' code (fdbtrs/ElasticFace) indexes the sorted margins by the samples' order, where
    it takes their ranks. As there, arc is that formula for every angle: where theta_y > pi - m_i it falls as
    cos theta_y grows, and what a large step has put there is pushed on to the opposite of its class. Whole trainings
    end so (LeNet on MNIST with an lr of 1e-4: a mean cos theta_y of -1); ArcFace's own code has another branch there. f
    are the model's features; its own classifier is not used, and a run is measured by z: scores without probabilities,
    as training has margins and evaluation has none.

    The margins are drawn like masks of dropout (`runner.core.dropout`); outside of a run, and in evaluation, m_i = m. A
    soft target q, which the paper does not treat, gives the expected loss sum_c q_c L(c), and takes C^2 numbers a
    sample. Logits (..., C) and targets (...) or (..., C) give (...).

    Parameters
    ----------
    form : arc or cos. Default arc.
    m, sigma : default 0.5 for arc; 0.35 for cos (conf/loss/elasticface_cos.yaml); 0.05. They are those of the code's
        config.py, which has sigma 0.0175 (arc) and 0.02 (cos) for `plus`; losses.py alone has 0.0125.
    s : scale of the cosines. Default 64.
    plus : default False.
    classes, features : from the data set and the model.
    """

    masks: Masks | None = None  # set by the engine

    def __init__(
        self,
        form: Literal["arc", "cos"] = "arc",
        m: NonNegative = 0.5,
        sigma: NonNegative = 0.05,
        s: Positive = 64.0,
        plus: Annotated[bool, When("sigma", 0, but=True)] = False,
        *,
        classes: int,
        features: int,
    ):
        super().__init__()
        self.form = form
        self.m = m
        self.sigma = sigma
        self.s = s
        self.plus = plus
        self.cosines = Cosines(features, classes)
        nn.init.normal_(self.cosines.weight, std=0.01)  # as in the authors' code: shorter vectors turn faster

    @property
    def probabilities(self) -> bool:
        return self.m == self.sigma == 0

    def head(self, out: Output) -> Output:
        return replace(out, logits=self.s * self.cosines(out.features))

    def forward(self, out: Output, batch: Batch) -> Tensor:
        cosine = (wide(out.logits) / self.s).clamp(-1 + EDGE, 1 - EDGE)
        margin = self._margins((soft_targets(batch.y, cosine) * cosine.detach()).sum(-1)).unsqueeze(-1)
        moved = (cosine.acos() + margin).cos() if self.form == "arc" else cosine - margin
        return margin_entropy(self.s * cosine, self.s * moved, batch.y)

    def _margins(self, own: Tensor) -> Tensor:
        """m_i (...), for samples with these cosines with their class."""
        if self.masks is None or not self.training:
            return torch.zeros_like(own) + self.m
        draws = uniform(own, self.masks, "elasticface").to(own.dtype) * (1 - 2**-23) + 2**-24  # inside of (0, 1)
        margins = self.m + self.sigma * 2**0.5 * torch.erfinv(2 * draws - 1)
        if self.plus:
            rank = own.flatten().argsort(descending=True).argsort()
            margins = margins.flatten().sort().values[rank].reshape(own.shape)
        return margins
