"""Convex combinations of samples."""

from dataclasses import replace

import torch
from torch.nn import functional as F

from runner.augment import Augment, Draw
from runner.core.batch import Batch
from runner.core.schema import Positive


class Mixup(Augment):
    """x = l x_i + (1 - l) x_j and y = l y_i + (1 - l) y_j with l ~ Beta(alpha, alpha).

    Zhang et al. 2018, arXiv:1710.09412. As in the authors' code, one l serves the whole batch and j is a permutation of
    the batch. Class ids become soft targets (B, C); other targets are mixed as they are. Over several devices l is the
    same for all, and partners come from a device's own share; every client of a federation draws its own.

    Parameters
    ----------
    alpha : of the Beta distribution. Default 1, the authors' for CIFAR-10: l is uniform.
    classes : C, given by the data set.
    """

    mixes = True

    def __init__(self, classes: int, alpha: Positive = 1.0):
        self.classes, self.alpha = classes, alpha

    def batch(self, batch: Batch, draw: Draw) -> Batch:
        generator = draw.generator("mixup")
        share = float(generator.beta(self.alpha, self.alpha))
        partner = torch.from_numpy(generator.permutation(len(batch))).to(batch.x.device)
        y = batch.y if batch.y.is_floating_point() else F.one_hot(batch.y, self.classes).float()
        x, y = (torch.lerp(values.index_select(0, partner), values, share) for values in (batch.x, y))
        return replace(batch, x=x, y=y)
