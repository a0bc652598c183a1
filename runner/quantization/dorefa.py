"""DoReFa-Net."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from runner.core.batch import Batch
from runner.core.precision import wide
from runner.core.schema import Count
from runner.quantization import Begin, Transform
from runner.quantization.fake import Ends, Float, Target, attach
from runner.quantization.fold import estimate
from runner.quantization.quantizer import Bits, Codes, sign, straight
from runner.quantization.standin import bound, size


class Weights(nn.Module):
    """Equations 8 (one bit) and 9 and 10 (more)."""

    def __init__(self, bits: int):
        super().__init__()
        self.bits = bits

    def forward(self, w: Tensor) -> tuple[Tensor, Tensor]:
        w = wide(w)
        if self.bits == 1:
            return straight(sign(w), w / self._mean(w)), self._mean(w)
        steps, unit = 2**self.bits - 1, 2.0**-self.bits
        t = w.tanh()
        largest = size(w, t.abs().amax(), math.tanh(bound(w)) / bound(w))
        q = steps * (t / (2 * largest) + 0.5)
        return (2 * straight(q.round(), q) - steps) * unit, w.new_full((), 1 / (steps * unit))

    def codes(self, w: Tensor) -> Codes:
        steps = 2**self.bits - 1
        with torch.no_grad():
            levels, step = self(w)
        if self.bits == 1:
            return Codes((levels > 0).to(torch.uint8), 2 * step, torch.full_like(step, 0.5), 1)
        q = ((levels * 2.0**self.bits + steps) / 2).round().to(torch.uint8)
        return Codes(q, step.new_full((), 2 / steps), step.new_full((), steps / 2), self.bits)

    @staticmethod
    def _mean(w: Tensor) -> Tensor:
        return size(w, w.detach().abs().mean(), 0.5)


class Inputs(nn.Module):
    """quantize_k of the input clipped to [0, 1], or of a signed one to [-1, 1]."""

    def __init__(self, bits: int, signed: bool):
        super().__init__()
        self.bits, self.signed = bits, signed

    def forward(self, x: Tensor) -> tuple[Tensor, float]:
        x = wide(x)
        if self.signed and self.bits == 1:
            return Clipped.apply(x, -1.0, None, 1.0), 1.0
        steps, unit = 2 ** (self.bits - self.signed) - 1, 2.0**-self.bits
        return Clipped.apply(x, -1.0 if self.signed else 0.0, steps, unit), 1 / (steps * unit)


class Clipped(torch.autograd.Function):
    """round(steps * x) * unit with x clipped to [low, 1], straight through the rounding; without steps its sign.

    Both bounds pass the gradient on, as in the authors' framework; what torch.clamp does there depends on its version.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, low: float, steps: int | None, unit: float) -> Tensor:
        if steps is None:
            return sign(x) * unit
        return x.clamp(low, 1.0).mul_(steps).round_().mul_(unit)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        x, ctx.low, steps, unit = inputs
        ctx.slope = unit if steps is None else unit * steps
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        (x,) = ctx.saved_tensors
        # numbers, as torch.compile would keep flags from the forward pass, at the price of as much again as the step
        outside = (x - x.clamp(ctx.low, 1.0)).abs().sign()
        return (grad * ctx.slope).mul_(1 - outside), None, None, None


class DoReFa(Transform):
    """DoReFa-Net (Zhou et al., 2016, arXiv:1606.06160): k-bit weights in [-1, 1] and inputs in [0, 1], without scales.

        quantize_k(r) = round((2^k - 1) r) / (2^k - 1)                                  straight through, equation 6
        weights:  2 quantize_k(tanh(w) / (2 max|tanh(w)|) + 1/2) - 1                    the maximum over the tensor
                  with one bit sign(w) * mean|w|, over the tensor, whose gradient is passed on to w
        inputs:   quantize_k(min(max(x, 0), 1))

    Where all weights are zero, maximum and mean are what `runner.quantization.standin` puts there.
    The first and the last layer stay in full precision, as in the paper. Gradients do too: the paper also quantizes
    those of the activations (its G; here G = 32). As in the authors' code (tensorpack, examples/DoReFa-Net/dorefa.py)
    the gradient of the maximum is followed, and that of the mean is not. Signed inputs, which the paper's networks do
    not have, are clipped to [-1, 1] and rounded to multiples of 1 / (2^(k-1) - 1), to their sign with one bit. The
    weights are not small: a model needs normalisation layers to train well.

    Parameters
    ----------
    bits : k of weights, and of inputs. Default 4.
    inputs : k of the inputs instead; `float` leaves them as they are. Default `same`.
    ends : bits of the first and the last layer; `same` as the others, `float` in full precision. Default `float`.
    begin : share of the steps in full precision before quantization begins; see `Transform`. Default 0.
    calibration : training samples that find signed inputs. Default 128.

    Raises
    ------
    ValueError
        From `prepare`: no layer to quantize.
    """

    def __init__(
        self,
        bits: Bits = 4,
        inputs: Literal["same", "float"] | Bits = "same",
        ends: Ends = "float",
        begin: Begin = 0.0,
        calibration: Count = 128,
    ):
        self.bits, self.inputs, self.ends = bits, inputs, ends
        self.begin, self.calibration = begin, calibration

    def prepare(self, model: nn.Module, batch: Batch) -> nn.Module:
        return attach(model, batch, self.bits, self.ends, self.quantizers, self.begin)

    def quantizers(self, target: Target, x: Tensor) -> tuple[nn.Module, nn.Module]:
        bits = self.inputs if self.inputs != "same" and not target.end else target.bits
        return Weights(target.bits), Float() if self.inputs == "float" else Inputs(bits, target.signed)

    def full(self, model: nn.Module, batch: Batch) -> nn.Module:
        """BatchNorm's statistics are estimated anew: those of training are behind weights without their scale."""
        made = super().full(model, batch)
        estimate(made, batch.x)
        return made

    def convert(self, model: nn.Module, batch: Batch) -> nn.Module:
        return model
