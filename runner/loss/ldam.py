"""Label-distribution-aware margin loss."""

from dataclasses import replace

from torch import Tensor

from runner.core.batch import Batch, Output
from runner.core.precision import wide
from runner.core.schema import NonNegative, Positive
from runner.loss import Loss, counts
from runner.loss.cosine import Cosines, margin_entropy


class LDAM(Loss):
    """LDAM (Cao et al., NeurIPS 2019, arXiv:1906.07413, equations 12 and 13) with a head of its own.

        L = -log softmax(z - s m_y e_y)_y,   m_c = max_m (n_min / n_c)^(1/4),   z_c = s <f, W_c> / (||f|| ||W_c||)

    n_c is the number of training samples of class c and f the model's features; the model's own classifier is not used.
    The head, the scale 30 and the largest margin 0.5 are those of the authors' code (kaidic/LDAM-DRW), which picks the
    constant of the margins so that the rarest class gets max_m. A run is measured by z, in which no
    class has a margin: with max_m > 0 they are scores without probabilities. The deferred re-weighting of
    LDAM-DRW is hook=drw.
    A soft target q, which the paper does not treat, gives the expected loss sum_c q_c L(c), as in mixup, and takes C^2
    numbers a sample. Logits (..., C) and targets (...) or (..., C) give (...).

    Parameters
    ----------
    max_m : the margin of the rarest class. Default 0.5.
    s : the scale of the cosines. Default 30.
    classes, features, class_counts : from the data set and the model. A class without samples counts as one with one.
    """

    def __init__(
        self,
        max_m: NonNegative = 0.5,
        s: Positive = 30.0,
        *,
        classes: int,
        features: int,
        class_counts: list[int] | None,
    ):
        super().__init__()
        self.max_m = max_m
        self.s = s
        self.cosines = Cosines(features, classes)
        self.register_buffer("counts", counts(class_counts, "loss=ldam"), persistent=False)

    @property
    def probabilities(self) -> bool:
        return self.max_m == 0

    def head(self, out: Output) -> Output:
        return replace(out, logits=self.s * self.cosines(out.features))

    def forward(self, out: Output, batch: Batch) -> Tensor:
        logits = wide(out.logits)
        margins = self.s * self.max_m * (self.counts.min() / self.counts.to(logits.dtype)) ** 0.25
        return margin_entropy(logits, logits - margins, batch.y)
