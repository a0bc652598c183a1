"""Binary networks by a periodic function."""

import copy
import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from runner.core import reach
from runner.core.batch import Batch, Output
from runner.core.precision import wide
from runner.core.schema import Count, Fraction, NonNegative, Positive
from runner.hook import Hook
from runner.quantization import Begin, Transform
from runner.quantization.fake import Float, Target, attach, now_quantized
from runner.quantization.fold import estimate
from runner.quantization.quantizer import Codes, sign, straight


class Weights(nn.Module):
    """sin(w0 W) times a learned scale for each output channel; its sign in the second stage."""

    def __init__(self, w: Tensor, frequency: float):
        super().__init__()
        self.frequency = frequency
        channels = (len(w), *[1] * (w.dim() - 1))
        self.alpha = nn.Parameter(torch.rand(channels, device=w.device, dtype=w.dtype))
        self.register_buffer("stage", torch.ones((), dtype=torch.int64, device=w.device))

    def wave(self, w: Tensor) -> Tensor:
        return torch.sin(self.frequency * wide(w))

    def forward(self, w: Tensor) -> tuple[Tensor, Tensor]:
        wave = self.wave(w)
        return torch.where(self.stage == 2, straight(sign(wave), wave), wave), self.alpha

    def codes(self, w: Tensor) -> Codes:
        """In the first stage too: what would be stored."""
        with torch.no_grad():
            bit = self.wave(w) >= 0
        alpha = self.alpha.detach()
        return Codes(bit.to(torch.uint8), 2 * alpha, torch.full_like(alpha, 0.5), 1)


class Sign(torch.autograd.Function):
    """The sign with the gradient max(2 - 2|a|, 0) (Liu et al., ECCV 2018)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, signed: bool) -> Tensor:
        return sign(a, signed)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        (a,) = ctx.saved_tensors
        return grad * (2 - 2 * a.abs()).clamp(min=0), None


class Inputs(nn.Module):
    bits = 1

    def __init__(self, signed: bool):
        super().__init__()
        self.signed = signed

    def forward(self, x: Tensor) -> tuple[Tensor, float]:
        x = wide(x)
        if self.training:  # the scale matters for the gradient alone
            x = x / (x.var(tuple(range(1, x.dim())), keepdim=True) + 1e-5).sqrt()
        return Sign.apply(x, self.signed), 1.0


class BiPer(Transform, Hook):
    """BiPer (Vargas et al., CVPR 2024, arXiv:2404.01278): one-bit weights, a square wave with the gradient of a sine.

        first stage:   W^ = alpha sin(w0 W)                inputs are binary already
        second stage:  W^ = alpha sign(sin(w0 W)),         the gradient of the sine, straight through the sign
        inputs:        sign(a),  a = x / std(x) of a sample,  with the gradient max(2 - 2|a|, 0)
        loss + penalty * sum over layers of mean sin(w0 W)^2

    alpha is learned for each output channel and starts uniform in [0, 1). As in the authors' code (edmav4/BiPer,
    cifar10: binarized_modules.py, main.py, main_stage2.py), whose option defaults are the defaults here; its script for
    ResNet-18 has w0 = 20 and penalties 0.037 and 0.0468. The penalty is the code's, with this sign, in both stages. The
    code runs the stages as two trainings of 600 and 300 epochs, each with its own cosine and decay, the second from the
    best checkpoint of the first; here they are one run with one schedule, which changes over after `first` of its
    steps. The first and the last layer stay in full precision, as there. The code multiplies the bias by alpha too (its
    layers have none); here it is as it was. The sign of exactly zero, zero there, is 1 here, and inputs that are never
    negative, such as those behind a ReLU, are 0 or 1.

    Parameters
    ----------
    frequency : w0. Default 30.
    penalty : default 0.001.
    first : the first stage's part of the steps. Default 2/3, that of the code's epochs.
    inputs : `binary`, or `float`, in full precision. Default `binary`.
    ends : the first and the last layer; `same` as the others or `float`. Default `float`.
    begin : share of the steps in full precision before quantization begins; see `Transform`. Default 0.
    calibration : training samples that find signed inputs. Default 128.

    Raises
    ------
    ValueError
        From `prepare`: no layer to quantize.
    """

    replicas = True
    padding = True  # the penalty is one of the weights

    maps = False  # it goes by the weights themselves

    def __init__(
        self,
        frequency: Positive = 30.0,
        penalty: NonNegative = 1e-3,
        first: Fraction = 2 / 3,
        inputs: Literal["binary", "float"] = "binary",
        ends: Literal["same", "float"] = "float",
        begin: Begin = 0.0,
        calibration: Count = 128,
    ):
        self.frequency, self.penalty, self.first = frequency, penalty, first
        self.inputs, self.ends, self.begin, self.calibration = inputs, ends, begin, calibration

    def begins(self, steps: int, steps_per_epoch: int) -> Iterable[reach.Begin]:
        yield from super().begins(steps, steps_per_epoch)
        after = math.ceil(self.first * steps)
        yield reach.Begin(f"the end of first={self.first:g}", after, "no step is taken with weights of one bit")

    def prepare(self, model: nn.Module, batch: Batch) -> nn.Module:
        return attach(model, batch, 1, self.ends, self.quantizers, self.begin)

    def quantizers(self, target: Target, x: Tensor) -> tuple[nn.Module, nn.Module]:
        return Weights(target.layer.weight, self.frequency), Float() if self.inputs == "float" else Inputs(
            target.signed
        )

    def loss(self, run, out: Output, batch: Batch) -> Tensor:
        layers = now_quantized(run.model)
        return self.penalty * sum(layer.quantize_w.wave(layer.weight).square().mean() for layer in layers)

    def before(self, run) -> None:
        """Of a client too, whose buffers were the server's."""
        self.enter(run.model, run.count >= self.first * run.steps)

    def step(self, run) -> None:
        second = torch.as_tensor(run.count + 1 >= self.first * run.steps).tolist()
        members = getattr(run, "members", [run])
        for member, over in zip(members, second if isinstance(second, list) else [second] * len(members), strict=True):
            self.enter(member.model, over)

    @staticmethod
    def enter(model: nn.Module, second: bool) -> None:
        for module in model.modules():
            if isinstance(module, Weights):
                module.stage.fill_(1 + second)

    def full(self, model: nn.Module, batch: Batch) -> nn.Module:
        """The network with alpha sin(w0 W) for its weights, of which W itself is but the angle, and with inputs in full
        precision, for which BatchNorm's statistics are estimated anew."""
        model = copy.deepcopy(model)
        with torch.no_grad():
            for layer in now_quantized(model):
                layer.weight.copy_(layer.quantize_w.alpha * layer.quantize_w.wave(layer.weight))
        made = super().full(model, batch)
        estimate(made, batch.x)
        return made

    def convert(self, model: nn.Module, batch: Batch) -> nn.Module:
        return model
