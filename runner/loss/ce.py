"""Cross-entropy."""

import torch
from torch import Tensor
from torch.nn import functional as F

from runner.core.batch import Batch, Output
from runner.core.precision import wide
from runner.core.schema import OpenFraction
from runner.loss import Loss


class CrossEntropy(Loss):
    """Softmax cross-entropy, in nats, with label smoothing (Szegedy et al., CVPR 2016, arXiv:1512.00567, section 7).

        L = -sum_c q_c log p_c,   p = softmax(z),   q = (1 - s) y + s / C

    y is the one-hot target or a soft one (rows that sum to 1), C the number of classes and s `label_smoothing`: the
    smoothing mass goes to all classes, the true one included, as in torch.nn.CrossEntropyLoss.
    Logits (..., C) and targets (...) or (..., C) give (...).

    Parameters
    ----------
    label_smoothing : s, in [0, 1). Default 0.
    """

    tasks = ("classes", "tasks")

    def __init__(self, label_smoothing: OpenFraction = 0.0):
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, out: Output, batch: Batch) -> Tensor:
        logits, y = wide(out.logits), batch.y
        shape = logits.shape[:-1]
        if len(shape) > 1 and y.dim() == len(shape) and logits.is_contiguous():  # twice as fast as along an axis
            logits, y = logits.flatten(0, -2), y.flatten()
        if y.dim() == logits.dim():
            y = y.to(logits.dtype)
            y = y.movedim(-1, 1) if y.dim() > 2 else y
        first = logits.movedim(-1, 1) if logits.dim() > 2 else logits  # torch wants the classes on axis 1
        if not isinstance(self.label_smoothing, Tensor):  # the fused kernel: a tenth of a small network's step
            losses = F.cross_entropy(first, y, reduction="none", label_smoothing=self.label_smoothing)
            return losses.view(shape)
        uniform = logits.logsumexp(-1) - logits.mean(-1)
        losses = F.cross_entropy(first, y, reduction="none")
        return torch.lerp(losses, uniform, self.label_smoothing.to(logits.dtype)).view(shape)
