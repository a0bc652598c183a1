"""Losses: per-sample values of the model's output against the targets."""

import torch
from torch import Tensor, nn

from runner.batch import Batch, Output


class Loss(nn.Module):
    """Base of every loss: (B,) per-sample values, no reduction, no side effect, computed in fp32 or better.

    The last axis of the logits is classes and the rest broadcasts, so (B, T, C) gives (B, T). Parameters of a loss
    (margins, heads, link functions) are trained with the model's; buffers are saved in the checkpoint.
    `tasks` says which kinds of targets the loss is defined for (see `runner.dataset.Dataset.task`).
    A constructor may ask by name for what the data set knows: `classes`, `samples`, `class_counts`.
    """

    tasks: tuple[str, ...] = ("classes",)

    def forward(self, out: Output, batch: Batch) -> Tensor:
        raise NotImplementedError

    def observe(self, out: Output, batch: Batch) -> None:
        """Called once a step with the detached pass measured at w, and not when the step was skipped."""


def wide(logits: Tensor) -> Tensor:
    """Logits in fp32, or in fp64 where they are: a half-precision softmax overflows (users.md row 38)."""
    return logits if logits.dtype == torch.float64 else logits.float()


def soft_targets(y: Tensor, logits: Tensor) -> Tensor:
    """Targets as probabilities (..., C): class ids become one-hot, soft targets pass through."""
    if y.dim() == logits.dim():
        return y.to(logits.dtype)
    return torch.zeros_like(logits).scatter(-1, y.unsqueeze(-1), 1.0)
