"""Transforms: surgery on the model, for quantization, sparsity and low rank."""

from torch import nn

from runner.batch import Batch


class Transform:
    """Base of every transform."""

    def prepare(self, model: nn.Module, example: Batch) -> nn.Module:
        """Before the weights are made one vector and the optimizer exists; `example` is one training batch."""
        raise NotImplementedError

    def convert(self, model: nn.Module, calibration: Batch) -> nn.Module:
        """After training: the model that would be deployed."""
        raise NotImplementedError
