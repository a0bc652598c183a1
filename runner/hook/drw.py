"""Deferred re-weighting."""

from collections.abc import Iterable
from dataclasses import replace

from runner.core import distributed
from runner.core.batch import Batch
from runner.core.reach import Begin
from runner.core.schema import Natural, OpenFraction
from runner.hook import Hook
from runner.loss import counts
from runner.loss.focal import Focal


class DRW(Hook):
    """Class weights from epoch `epoch` on, none before (Cao et al., NeurIPS 2019, arXiv:1906.07413, algorithm 1).

        w_c = (1 - beta) / (1 - beta^n_c),   sample weight = w_y / mean of w_y over the step's whole batch

    1 / w_c is the effective number of samples of a class with n_c (Cui et al., CVPR 2019, arXiv:1901.05555): 1 with
    beta = 0, n_c in the limit beta -> 1. The weights multiply the losses of any loss. With risk=mean that is the
    weighted mean sum w l / sum w, which is what torch's cross-entropy with class weights returns and the authors' code
    (kaidic/LDAM-DRW) minimises with cross-entropy and LDAM. With loss=focal it is Lin et al.'s equation 5 with w for
    alpha, w (1 - p)^gamma CE; the authors' code weighs CE before it makes p of it, (1 - p^w)^gamma w CE, makes the w_c
    sum to the number of classes and takes the plain mean. A run says so. A soft target q has the weight sum_c q_c w_c.
    Weights that the batch has already are multiplied. epoch=0 is class-balanced re-weighting from the start.

    Parameters
    ----------
    epoch : default 160, of the authors' 200, together with a drop of the learning rate.
    beta : default 0.9999.
    class_counts : from the data set. Raises ValueError where its targets are not class ids.
    """

    places = False  # a sample has one weight, and its targets are of several classes

    def __init__(self, epoch: Natural = 160, beta: OpenFraction = 0.9999, *, class_counts: list[int] | None):
        self.epoch = epoch
        n = counts(class_counts, "hook=drw").double()
        self.weights = (1 - beta) / (1 - beta**n)

    def begins(self, steps: int, steps_per_epoch: int) -> Iterable[Begin]:
        yield Begin(f"epoch={self.epoch}", self.epoch * steps_per_epoch, "no sample is weighted")

    def start(self, run) -> None:
        if isinstance(run.loss, Focal):
            run.notices.append(
                "hook=drw weighs the focal loss, w (1 - p)^gamma CE; its authors' code weighs the cross-entropy inside "
                "it, (1 - p^w)^gamma w CE"
            )
        if (self.weights == self.weights[0]).all():
            run.notices.append("hook=drw: every class has the same weight, so that it changes nothing")

    def batch(self, run, batch: Batch) -> Batch:
        if run.count < self.epoch * run.steps_per_epoch:
            return batch
        y, weights = batch.y, self.weights.to(batch.x)
        weight = weights[y] if y.dim() == 1 else y.to(weights.dtype) @ weights
        weight = weight * (batch.total or len(batch)) / distributed.sum_(weight.sum())
        return replace(batch, weight=weight if batch.weight is None else batch.weight * weight)
