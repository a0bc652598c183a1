"""AnyLoss: a metric of the confusion matrix as a loss."""

from typing import Annotated, Literal

import torch
from torch import Tensor

from runner.core.batch import Batch, Output
from runner.core.precision import wide
from runner.core.schema import Natural, Positive, When
from runner.loss import Loss, soft_targets


def ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, and 0 where both are."""
    return part / whole.clamp_min(torch.finfo(whole.dtype).tiny)


def accuracy(tp: Tensor, fn: Tensor, fp: Tensor, tn: Tensor, beta: float) -> Tensor:
    return ratio(tp + tn, tp + fn + fp + tn)


def f_beta(tp: Tensor, fn: Tensor, fp: Tensor, tn: Tensor, beta: float) -> Tensor:
    return ratio((1 + beta**2) * tp, (1 + beta**2) * tp + beta**2 * fn + fp)


def g_mean(tp: Tensor, fn: Tensor, fp: Tensor, tn: Tensor, beta: float) -> Tensor:
    product = ratio(tp, tp + fn) * ratio(tn, tn + fp)
    return product.clamp_min(torch.finfo(product.dtype).tiny).sqrt()  # the root has an infinite slope at 0


def balanced_accuracy(tp: Tensor, fn: Tensor, fp: Tensor, tn: Tensor, beta: float) -> Tensor:
    return (ratio(tp, tp + fn) + ratio(tn, tn + fp)) / 2


METRICS = {"accuracy": accuracy, "f_beta": f_beta, "g_mean": g_mean, "balanced_accuracy": balanced_accuracy}


class AnyLoss(Loss):
    """One minus a metric of a batch's soft confusion matrix (Han et al., KDD 2024, arXiv:2405.14745).

        L = 1 - metric(TP, FN, FP, TN),   A_i = sigmoid(L (p_i - 1/2)),   p = softmax(z)_positive
        TP = sum y A,   FN = sum y (1 - A),   FP = sum (1 - y) A,   TN = sum (1 - y) (1 - A)

        accuracy            (TP + TN) / (TP + FN + FP + TN)
        f_beta              (1 + beta^2) TP / ((1 + beta^2) TP + beta^2 FN + FP)
        g_mean              sqrt(TP / (TP + FN) * TN / (TN + FP))
        balanced_accuracy   (TP / (TP + FN) + TN / (TN + FP)) / 2

    The four are those of the paper, in the form of the authors' code (doheonhan/anyloss); another one is a function of
    the four entries in METRICS. Every sample of the batch has the same loss, so that their mean is L; a weight scales
    it and does not count its sample more often. With `train.accumulate` or several devices the confusion matrix is that
    of a micro-batch. It is for two classes, as the paper, which has one output: p of two logits is the sigmoid of their
    difference. A batch without a class has the rate 0 for it, where the authors' code divides by zero. A is flat away
    from p = 1/2, so that few samples have a gradient at all. A soft target counts by its share.
    Logits (..., 2) and targets (...) or (..., 2) give (...).

    Parameters
    ----------
    metric : default f_beta; the paper has no default.
    L : amplifying scale. Default 73, the paper's: the largest whole number for which A(1) < 1 in fp64.
    beta : of f_beta. Default 1.
    positive : class id. Default 1.
    classes : from the data set. Raises ValueError for other than two, or where there is no class `positive`.
    """

    padding = False
    alike = True

    def __init__(
        self,
        metric: Literal["accuracy", "f_beta", "g_mean", "balanced_accuracy"] = "f_beta",
        L: Positive = 73.0,
        beta: Annotated[Positive, When("metric", "f_beta")] = 1.0,
        positive: Natural = 1,
        *,
        classes: int,
    ):
        super().__init__()
        if classes != 2:
            raise ValueError(f"loss=anyloss is defined for two classes, and this data set has {classes}")
        if positive >= classes:
            raise ValueError(f"loss.positive={positive}: the classes are 0..{classes - 1}")
        self.metric = metric
        self.L = L
        self.beta = beta
        self.positive = positive

    def forward(self, out: Output, batch: Batch) -> Tensor:
        logits = wide(out.logits)
        y = soft_targets(batch.y, logits)[..., self.positive]
        hard = torch.sigmoid(self.L * (logits.softmax(-1)[..., self.positive] - 0.5))
        tp, fp = (y * hard).sum(), ((1 - y) * hard).sum()
        fn, tn = (y * (1 - hard)).sum(), ((1 - y) * (1 - hard)).sum()
        return (1 - METRICS[self.metric](tp, fn, fp, tn, self.beta)).expand(y.shape)
