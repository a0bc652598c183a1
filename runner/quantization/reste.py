"""Rectified straight-through estimator."""

import math
from collections.abc import Iterable
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from runner.core import reach
from runner.core.batch import Batch
from runner.core.precision import wide
from runner.core.schema import Count, Positive, Range
from runner.hook import Hook
from runner.quantization import Begin, Transform
from runner.quantization.fake import Float, Target, attach
from runner.quantization.fold import estimate
from runner.quantization.quantizer import Codes, sign
from runner.quantization.standin import size

Power = Annotated[float, Range(1)]
INTERVAL = 0.1  # around zero the gradient is the chord's, as it is unbounded there


class Estimator(torch.autograd.Function):
    """The sign (0 and 1 where not signed) with the gradient of sign(x) |x|^(1/o): see ReSTE."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, o: Tensor, threshold: Tensor, signed: bool) -> Tensor:
        return sign(x, signed)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs[:3])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        x, o, threshold = ctx.saved_tensors
        size = x.abs()
        slope = size.clamp(min=INTERVAL).pow((1 - o) / o) / o
        slope = torch.where(size <= INTERVAL, INTERVAL ** (1 / o) / INTERVAL, slope)
        return grad * slope * (size <= threshold), None, None, None


class Binary(nn.Module):
    """The power o is a buffer, which the epochs move."""

    def __init__(self, like: Tensor, threshold: float, signed: bool = True):
        super().__init__()
        self.signed = signed
        self.register_buffer("o", like.new_ones(()))
        self.register_buffer("threshold", like.new_tensor(threshold))

    def levels(self, x: Tensor) -> Tensor:
        x = wide(x)
        return Estimator.apply(x, self.o, self.threshold, self.signed)


class Weights(Binary):
    def forward(self, w: Tensor) -> tuple[Tensor, Tensor]:
        return self.levels(w), size(w, wide(w).abs().mean(), 0.5)

    def codes(self, w: Tensor) -> Codes:
        with torch.no_grad():
            levels, step = self(w)
        return Codes((levels > 0).to(torch.uint8), 2 * step, torch.full_like(step, 0.5), 1)


class Inputs(Binary):
    bits = 1

    def forward(self, x: Tensor) -> tuple[Tensor, float]:
        return self.levels(x), 1.0


class ReSTE(Transform, Hook):
    """ReSTE (Wu et al., ICCV 2023, arXiv:2308.06689): one-bit weights and inputs with the gradient of a power function.

        forward:  x -> sign(x),   weights times mean|w| over the tensor, through which the gradient flows too
        backward: d / dx = (1/o) |x|^((1-o)/o)   where 0.1 < |x| <= threshold
                           0.1^(1/o) / 0.1       where |x| <= 0.1,          0 beyond the threshold
        o = 1 + (1 - cos(pi e / (2 E))) * (o_end - 1)   in epoch e = 0, 1, ... of E

    so that the estimator starts as the plain straight-through one (o = 1) and comes closer to the sign. All as in the
    authors' code (DravenALG/ReSTE, main.py and binarized_modules.py): its o_end, threshold and interval are the
    defaults, and the first and the last layer stay in full precision, as in its models. Its sign has three values,
    zero at zero. Here signed tensors have two, +1 at zero; inputs that are never negative, such as those behind a
    ReLU, are 0 or 1 as they are there. Where all weights are zero, mean|w| is what `runner.quantization.standin` puts
    there. Its networks put BatchNorm behind the ReLU, so that inputs are signed; the
    models here do not.

    Parameters
    ----------
    inputs : `binary`, or `float`, in full precision. Default `binary`.
    o_end : o at the end. Default 3.
    threshold : beyond which there is no gradient. Default 1.5.
    ends : the first and the last layer; `same` as the others or `float`. Default `float`.
    begin : share of the steps in full precision before quantization begins; see `Transform`. Default 0.
    calibration : training samples that find signed inputs. Default 128.

    Raises
    ------
    ValueError
        From `prepare`: no layer to quantize.
    """

    def __init__(
        self,
        inputs: Literal["binary", "float"] = "binary",
        o_end: Power = 3.0,
        threshold: Positive = 1.5,
        ends: Literal["same", "float"] = "float",
        begin: Begin = 0.0,
        calibration: Count = 128,
    ):
        self.inputs, self.o_end, self.threshold, self.ends = inputs, o_end, threshold, ends
        self.begin, self.calibration = begin, calibration

    def begins(self, steps: int, steps_per_epoch: int) -> Iterable[reach.Begin]:
        yield from super().begins(steps, steps_per_epoch)
        yield reach.Begin("the second epoch", steps_per_epoch, "the power stays at 1, the plain estimator")

    def prepare(self, model: nn.Module, batch: Batch) -> nn.Module:
        return attach(model, batch, 1, self.ends, self.quantizers, self.begin)

    def quantizers(self, target: Target, x: Tensor) -> tuple[nn.Module, nn.Module]:
        weights = Weights(target.weight, self.threshold)
        return weights, Float() if self.inputs == "float" else Inputs(x, self.threshold, target.signed)

    def before(self, run) -> None:
        epochs = math.ceil(run.steps / run.steps_per_epoch)
        o = 1 + (1 - math.cos(math.pi * (run.count // run.steps_per_epoch) / (2 * epochs))) * (self.o_end - 1)
        for module in run.model.modules():
            if isinstance(module, Binary):
                module.o.fill_(o)

    def full(self, model: nn.Module, batch: Batch) -> nn.Module:
        """BatchNorm's statistics are estimated anew: those of training are behind signs."""
        made = super().full(model, batch)
        estimate(made, batch.x)
        return made

    def convert(self, model: nn.Module, batch: Batch) -> nn.Module:
        return model
