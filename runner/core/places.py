"""Measures of targets with places, tokens or pixels: sums over batches, as all logits at once would be too many."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from runner.core import distributed
from runner.core.measure import BINS, OF_PROBABILITIES, binned, equal_width, scores

if TYPE_CHECKING:
    from runner.loss import Loss


class Sums:
    """The measures of class ids at places, by all targets that count:

    - `accuracy` of the largest logit, `nll`, the mean of -log p_y in nats, `ece` in 15 bins of equal width (see
      `runner.core.measure.calibration_error`);
    - of tokens `perplexity`, exp of the NLL;
    - of pixels, with `overlap`, `miou` and `dice`: of each class TP / (TP + FP + FN) and 2 TP / (2 TP + FP + FN) over
      all targets of the split, the mean over the classes that occur in targets or predictions.

    What needs probabilities is None where the loss defines none. nan where some logits have no softmax.
    """

    def __init__(self, classes: int, loss: "Loss", overlap: bool):
        self.loss, self.overlap, self.classes = loss, overlap, classes
        self.nll = torch.zeros((), dtype=torch.float64)
        self.bins = torch.zeros(3, BINS, dtype=torch.float64)
        self.pairs = torch.zeros(classes, classes, dtype=torch.float64) if overlap else torch.zeros(())

    def add(self, logits: Tensor, y: Tensor, valid: Tensor | None) -> None:
        """logits (B, *places, C), y (B, *places), valid of that shape or None: all."""
        own = self.loss.log_probabilities(logits).flatten(0, -2)
        logits, y = logits.flatten(0, -2), y.flatten()
        if valid is not None:
            logits, own, y = logits[valid.flatten()], own[valid.flatten()], y[valid.flatten()]
        nll, _, confidence, right = scores(logits, y, own)
        self.nll += nll.sum()
        self.bins += binned(confidence, right, equal_width())
        if self.overlap:
            seen = y.cpu() * self.classes + logits.argmax(-1).cpu()
            self.pairs += torch.bincount(seen, minlength=self.classes**2).view_as(self.pairs)

    def result(self, first: str | None) -> dict[str, float | None]:
        """Over all processes; `first` in front."""
        nll, bins, pairs = (distributed.sum_(part) for part in (self.nll, self.bins, self.pairs))
        count, sure, hits = bins
        samples = count.sum().item()
        nll = nll.item() / samples if samples else math.nan
        found = {
            "accuracy": hits.sum().item() / samples if samples else math.nan,
            "nll": nll,
            "ece": ((hits - sure).abs().sum() / samples).item() if samples else math.nan,
        }
        if not self.overlap:
            found["perplexity"] = math.exp(nll) if nll < 700 else math.inf
        else:
            true, either = pairs.diagonal(), pairs.sum(0) + pairs.sum(1)
            there = either > 0
            found["miou"] = (true / (either - true))[there].mean().item()
            found["dice"] = (2 * true / either)[there].mean().item()
        if not self.loss.probabilities:
            found |= {key: None for key in (*OF_PROBABILITIES, "perplexity") if key in found}
        return {key: found[key] for key in dict.fromkeys((first, *found)) if key in found}
