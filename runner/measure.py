"""What a model is measured by on held-out data."""

import torch
from torch import Tensor
from torch.nn import functional as F

from runner.loss import wide

BINS = 15  # Guo et al. 2017, arXiv:1706.04599, section 5


def measures(logits: Tensor, y: Tensor, task: str) -> dict[str, float]:
    """The measures of a task over N samples; logits are (N, C) in any dtype, sums are in fp64.

    - "classes", y (N,) class ids: `accuracy` in [0, 1] of the largest logit; `nll`, the mean of -log p_y in nats;
      `ece`, the expected calibration error (see `calibration_error`).
    - "multilabel", y (N, C) of 0 and 1: `accuracy`, the share of the N * C labels on the right side of p = 1/2;
      `exact`, the share of samples with all C right; `nll`, the mean binary -log p per label, in nats.
    - "regression", y (N,) and logits (N, 1), or both (N, C): `mae` and `rmse`, in the units of y.

    Raises ValueError for another task, and for shapes that do not fit it.
    """
    if task == "classes" and logits.dim() == 2 and y.shape == logits.shape[:1]:
        logp = F.log_softmax(wide(logits), -1)
        nll = F.nll_loss(logp, y, reduction="none")
        confidence, guess = logp.max(-1)
        nll, confidence, right = (value.cpu().double() for value in (nll, confidence.exp(), guess == y))
        return {
            "accuracy": right.mean().item(),
            "nll": nll.mean().item(),
            "ece": calibration_error(confidence, right),
        }
    if task == "multilabel" and logits.shape == y.shape:
        nll = F.binary_cross_entropy_with_logits(wide(logits), y.to(wide(logits).dtype), reduction="none")
        right = (logits > 0) == (y > 0.5)
        return {
            "accuracy": right.double().mean().item(),
            "exact": right.all(-1).double().mean().item(),
            "nll": nll.double().mean().item(),
        }
    if task == "regression" and logits.numel() == y.numel():
        error = wide(logits).reshape(y.shape).double() - y.double()
        return {"mae": error.abs().mean().item(), "rmse": error.square().mean().sqrt().item()}
    raise ValueError(f"task {task!r} cannot be measured on logits {tuple(logits.shape)} and targets {tuple(y.shape)}")


def calibration_error(confidence: Tensor, right: Tensor, bins: int = BINS) -> float:
    """Expected calibration error (Guo et al., ICML 2017, arXiv:1706.04599, equation 3).

        ECE = sum_m |B_m| / N * |accuracy(B_m) - confidence(B_m)|

    B_m holds the samples whose confidence, the largest probability, is in ((m - 1) / bins, m / bins].
    confidence, right: (N,) fp64, `right` being 1 where the prediction is correct and 0 elsewhere.
    """
    edges = torch.arange(1, bins, dtype=confidence.dtype) / bins
    gaps = torch.zeros(bins, dtype=confidence.dtype)
    gaps.index_add_(0, torch.bucketize(confidence, edges), right - confidence)
    return (gaps.abs().sum() / len(right)).item()
