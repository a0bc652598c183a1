"""Models: every one is built for the data set's input shape and classes and returns logits and features."""

import torch
from torch import Tensor, nn

from runner.core.batch import Output


class Classifier(nn.Module):
    """A model in two parts: `body`, (B, *shape) -> (B, D) features, and `head`, (B, D) -> (B, classes) logits."""

    def __init__(self, body: nn.Module, head: nn.Module):
        super().__init__()
        self.body = body
        self.head = head

    def forward(self, x: Tensor) -> Output:
        features = self.body(x)
        return Output(self.head(features), features)


def head(features: int, classes: int, heads: int | None) -> nn.Module:
    """A linear classifier; for a data set of several tasks one for each, (B, D) -> (B, heads, classes)."""
    return nn.Linear(features, classes) if heads is None else Heads(features, classes, heads)


class Heads(nn.Module):
    """Linear classifiers of the same features, (B, D) -> (B, T, classes), each with weights of its own."""

    def __init__(self, features: int, classes: int, heads: int):
        super().__init__()
        self.each = nn.ModuleList(nn.Linear(features, classes) for _ in range(heads))

    def forward(self, features: Tensor) -> Tensor:
        return torch.stack([one(features) for one in self.each], -2)
