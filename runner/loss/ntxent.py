"""Normalised temperature-scaled cross-entropy: two versions of a sample among those of all others."""

import torch
from torch import Tensor
from torch.nn import functional as F

from runner.core.batch import Batch, Output
from runner.core.precision import wide
from runner.core.schema import Count, Positive
from runner.loss import Loss
from runner.loss.projection import Projector, knn_accuracy
from runner.risk import one_pass


class NTXent(Loss):
    """SimCLR's loss (Chen et al., ICML 2020, arXiv:2002.05709, equation 1), of two augmented views of every sample:

        l(a, b) = -log( exp(s(a, b) / t) / sum over c != a of exp(s(a, c) / t) ),   s the cosine of projections

    c runs over both views of all B samples of a forward pass but a itself; a sample's loss is the mean of l(x, x2) and
    l(x2, x). The projection is `runner.loss.projection.Projector` of the features, trained along; the features are what
    is measured, as the accuracy of their k nearest neighbours in the training set without augmentation: labels are
    looked at there and nowhere else. The classifier of the model gets no gradient.

    Negatives are those of a forward pass: with `train.accumulate`, several processes or `sharpness.m` there are fewer,
    which a run says.

    Parameters
    ----------
    temperature : t. Default 0.5, the paper's best for CIFAR-10 (appendix B.9).
    out : of the projection. Default 128, the paper's. neighbours : k. Default 20.
    features : D, given by the model.
    """

    predicts = False
    padding = False
    views = ("x2",)

    def __init__(self, features: int, temperature: Positive = 0.5, out: Count = 128, neighbours: Count = 20):
        super().__init__()
        self.projector, self.temperature, self.neighbours = Projector(features, out), temperature, neighbours

    def head(self, out: Output) -> Output:
        return Output(out.logits, out.features, {**out.more, "z": self.projector(wide(out.features))})

    def forward(self, out: Output, batch: Batch) -> Tensor:
        """Of `more["z"]` and `more["x2.z"]`, (B, out) each."""
        z = F.normalize(torch.cat([out.more["z"], out.more["x2.z"]]), dim=1)
        count = len(z) // 2
        own = torch.eye(2 * count, dtype=torch.bool, device=z.device)
        logits = (z @ z.T / self.temperature).masked_fill(own, -torch.inf)
        partner = torch.arange(2 * count, device=z.device).roll(count)
        losses = logits.logsumexp(1) - logits.gather(1, partner.unsqueeze(1)).squeeze(1)
        return (losses[:count] + losses[count:]) / 2

    def evaluate(self, run, split) -> dict[str, float | None]:
        bank, found = (run.predict_as_is(of, of="features") for of in (run.dataset.train, split))
        return {"knn_accuracy": knn_accuracy(*bank, *found, self.neighbours)}

    def notices(self, run) -> list[str]:
        seen, lines = one_pass(run), []
        if seen < run.train.batch_size:
            lines = [f"loss=ntxent: a sample is told from the {seen - 1} others of its forward pass, not of its batch"]
        if not (run.loader.pixel_augments or run.loader.batch_augments):
            lines.append("loss=ntxent: both views of a sample are the sample itself: set augment=[simclr] or another")
        return lines
