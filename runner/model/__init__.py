"""Models: every one is built for the data set's input shape and classes and returns logits and features."""

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
