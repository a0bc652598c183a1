"""No surgery."""

from torch import nn

from runner.core.batch import Batch
from runner.quantization import Transform


class Identity(Transform):
    """The model as it is."""

    def prepare(self, model: nn.Module, batch: Batch) -> nn.Module:
        return model

    def convert(self, model: nn.Module, batch: Batch) -> nn.Module:
        return model
