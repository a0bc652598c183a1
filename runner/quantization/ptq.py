"""Post-training quantization: rounding to nearest on calibrated grids."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from runner.core.batch import Batch
from runner.core.schema import Count, When
from runner.quantization.fake import Ends, Target, targets
from runner.quantization.fold import fold
from runner.quantization.lsq import LSQ
from runner.quantization.quantizer import Bits, Percent, Ranges
from runner.transform.maps import baked

SAMPLES = 256  # on which the range of inputs by MSE is searched


class PTQ(LSQ):
    """Round a trained network (Nagel et al., 2021, arXiv:2106.08295, section 3): training is in full precision, then

        BatchNorm is folded into the layer before it,
        the grids of weights and inputs are set by their ranges, those of inputs on the calibration samples,
        every weight is rounded to the nearest level.

    Quantizers are those of `runner.quantization.quantizer`. As in the paper's recipe ranges are those with the least
    squared error. Weights are symmetric on one grid for a tensor; `channels` and `affine` are what the paper advises
    where that is not enough. Training, its records and its checkpoints are those of quantization=none; with
    `checkpoint=` there is no training. What is quantized is under `quantization` in result.json.

    Parameters
    ----------
    bits : of weights, and of inputs. Default 8.
    inputs, ends, channels, affine, percentile : see `LSQ`.
    range : from which the grids are made: `lsq`, `minmax`, `percentile` or `mse`. Default `mse`.
    calibration : training samples. Default 1024.

    Raises
    ------
    ValueError
        `affine` with `range=lsq` or one bit; from `prepare`, no layer to quantize.
    """

    after = True

    def __init__(
        self,
        bits: Bits = 8,
        inputs: Literal["same", "float"] | Bits = "same",
        ends: Ends = 8,
        channels: bool = False,
        affine: bool = False,
        range: Ranges = "mse",
        percentile: Annotated[Percent, When("range", "percentile")] = 99.9,
        calibration: Count = 1024,
    ):
        super().__init__(
            bits, inputs, ends, channels, affine, range=range, percentile=percentile, calibration=calibration
        )

    def prepare(self, model: nn.Module, batch: Batch) -> nn.Module:
        targets(model, batch, self.bits, self.ends)  # what cannot be quantized is said before training
        return model

    def quantizers(self, target: Target, x: Tensor) -> tuple[nn.Module, nn.Module]:
        return super().quantizers(target, x[:SAMPLES] if self.grid["range"] == "mse" else x)

    def full(self, model: nn.Module, batch: Batch) -> nn.Module:
        """The trained network with BatchNorm folded."""
        model = copy.deepcopy(baked(model))
        fold(model, batch.x[:2])
        return model.requires_grad_(False)

    def convert(self, model: nn.Module, batch: Batch) -> nn.Module:
        full = self.full(model, batch)
        quantized = copy.deepcopy(full)
        with settled(quantized):
            super().prepare(quantized, batch)
            quantized.requires_grad_(False)
            with settled(full):
                self.fit(full, quantized, batch)
        return quantized

    def frame(self, model: nn.Module, batch: Batch) -> nn.Module:
        plain = copy.copy(self)
        plain.fit = lambda *_: None
        return PTQ.convert(plain, model, batch)

    def fit(self, full: nn.Module, quantized: nn.Module, batch: Batch) -> None:
        """Improve `quantized`, which is `full` rounded to nearest, in place."""


@contextmanager
def settled(model: nn.Module) -> Iterator[None]:
    """BatchNorm that could not be folded evaluates with its running statistics, which training has made."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False  # `fake.watch` leaves such a layer alone
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def output(layer: nn.Module, x: Tensor, w: Tensor) -> Tensor:
    """What a Linear or Conv2d makes of x with another weight."""
    if isinstance(layer, nn.Conv2d):
        return layer._conv_forward(x, w, layer.bias)
    return torch.nn.functional.linear(x, w, layer.bias)
