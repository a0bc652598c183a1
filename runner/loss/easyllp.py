"""EasyLLP: label proportions."""

import torch
from torch import Tensor
from torch.nn import functional as F

from runner.core.batch import Batch, Output
from runner.core.precision import wide
from runner.loss import Loss, soft_targets


class EasyLLP(Loss):
    """EasyLLP for bags of labels (Busa-Fekete et al., NeurIPS 2023, arXiv:2302.03115), with cross-entropy.

        L = -sum_c (k (alpha_c - p_c) + p_c) log softmax(z)_c

    alpha are the shares of the classes in the sample's bag, k the number of samples in it (dataset.bag_size) and p the
    shares in the whole training set. Where bags are drawn at random, the weight of class c given the sample is on
    average the probability of c: the loss is an unbiased estimate of the sample's own. The paper has two classes and
    any loss; with k = 1 this is cross-entropy. The weights sum to 1 but can be negative, so that the loss is not
    bounded from below; its gradient, softmax(z) minus the weights, is bounded. The paper's other estimator, with less
    variance, is not here: its details were not to be found.

    Logits (..., C) and targets (...) or (..., C) give (...).

    Parameters
    ----------
    bag, class_counts : from the data set.
    """

    def __init__(self, *, bag: int, class_counts: list[int]):
        super().__init__()
        self.bag = bag
        self.register_buffer("counts", torch.as_tensor(class_counts), persistent=False)

    def forward(self, out: Output, batch: Batch) -> Tensor:
        logits = wide(out.logits)
        p = self.counts / self.counts.sum().to(logits.dtype)
        weights = self.bag * (soft_targets(batch.y, logits) - p) + p
        return -(weights * F.log_softmax(logits, -1)).sum(-1)
