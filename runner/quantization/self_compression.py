"""Self-compressing networks: learned bit widths under a penalty on size."""

import copy
import math
from typing import Annotated

import torch
from torch import Tensor, nn

from runner.core.batch import Batch, Output
from runner.core.precision import wide
from runner.core.schema import NonNegative, Range
from runner.hook import Hook
from runner.quantization import Begin, Transform
from runner.quantization.fake import Float, Same, Target, attach, now_quantized
from runner.quantization.quantizer import SMALLEST, Codes, straight
from runner.quantization.standin import bound, filled

Width = Annotated[float, Range(0, 8, open_low=True)]


class Weights(nn.Module):
    """Bits b and an exponent e for each output channel; e is learned as its distance from where it starts."""

    def __init__(self, w: Tensor, bits: float, exponent: float | None):
        super().__init__()
        self.first_bits, self.exponent = bits, exponent
        start = self.first_exponent(w)
        self.register_buffer("start", start)
        self.shift = nn.Parameter(torch.zeros_like(start))
        self.bits = nn.Parameter(torch.full_like(start, bits))

    def first_exponent(self, w: Tensor) -> Tensor:
        w = wide(w.detach())
        channels = (len(w), *[1] * (w.dim() - 1))
        if self.exponent is not None:
            return w.new_full(channels, self.exponent)
        largest = filled(w.flatten(1), bound(w)).abs().amax(1).clamp(min=SMALLEST)
        return (largest / 2 ** (self.first_bits - 1)).log2().view(channels)

    @torch.no_grad()
    def calibrate(self, w: Tensor) -> None:
        self.start.copy_(self.first_exponent(w)), self.shift.zero_(), self.bits.fill_(self.first_bits)

    def forward(self, w: Tensor) -> tuple[Tensor, Tensor]:
        q, scale = self.levels(w)
        return q * scale, torch.ones_like(scale)

    def levels(self, w: Tensor) -> tuple[Tensor, Tensor]:
        scale, half = torch.exp2(self.start + self.shift), torch.exp2(self.bits.relu() - 1)
        v = torch.clamp(wide(w) / scale, -half, half - 1)
        return straight(v.round(), v), scale

    def codes(self, w: Tensor) -> Codes:
        """With the bits of the widest channel; others need fewer, `bits` rounded up, and those of none are zero."""
        with torch.no_grad():
            q, scale = self.levels(w)
            bits = max(1, math.ceil(self.bits.max().item()))
        zero = 2 ** (bits - 1)
        kind = torch.uint8 if bits <= 8 else torch.int32
        return Codes((q + zero).to(kind), scale, torch.full_like(scale, zero), bits)


class SelfCompression(Transform, Hook):
    """Self-compression (Csefalvay and Imber, 2023, arXiv:2301.13142): bits b >= 0 and an exponent e of every output
    channel of every Linear and Conv2d are trained with the weights,

        q(w) = 2^e round(clamp(2^-e w, -2^(b-1), 2^(b-1) - 1)),   straight through the rounding
        loss + gamma * Q,   Q = sum over channels of b * (weights in the channel) / (weights in all of them)

    so that Q is the mean number of bits of a weight. A channel whose b reaches 0 has weights of zero; `convert` removes
    it from its layer, though not from the input of the next, to which it is a constant. Inputs stay in full precision.
    b counts as max(b, 0), as in a public port that the defaults follow in gamma (geohot/ai-notebooks,
    mnist_self_compression.ipynb; not the authors' code); it starts with b = 2 and e = -8 for a model with BatchNorm
    behind every layer. Here b starts at 8 and e, unless given, where the largest weight of its channel just fits, so
    that a network starts as it would without (a channel of zeros: see `runner.quantization.standin`). The paper's own
    gamma and start were not found. e is stored as the distance from its start: weight decay, which acts on every
    parameter, draws it there, and b to 0.

    Parameters
    ----------
    gamma : of the mean number of bits. Default 0.05.
    bits : b at the start, at most 8. Default 8.
    exponent : e at the start. Default null: from the weights.
    begin : share of the steps in full precision before quantization begins; see `Transform`. Default 0.

    Raises
    ------
    ValueError
        From `prepare`: no layer to quantize.
    """

    padding = True  # the penalty is one of the weights

    maps = False  # it goes by the weights themselves

    def __init__(self, gamma: NonNegative = 0.05, bits: Width = 8.0, exponent: float | None = None, begin: Begin = 0.0):
        self.gamma, self.bits, self.exponent, self.begin = gamma, bits, exponent, begin

    def prepare(self, model: nn.Module, batch: Batch) -> nn.Module:
        return attach(model, batch, 8, "same", self.quantizers, self.begin)

    def quantizers(self, target: Target, x: Tensor) -> tuple[nn.Module, nn.Module]:
        return Weights(target.layer.weight, self.bits, self.exponent), Float()

    def loss(self, run, out: Output, batch: Batch) -> Tensor:
        return self.gamma * mean_bits(run.model) if now_quantized(run.model) else out.logits.new_zeros(())

    def convert(self, model: nn.Module, batch: Batch) -> nn.Module:
        """A copy in which channels whose weights are all zero are neither stored nor computed."""
        model = copy.deepcopy(model)
        for name, layer in list(model.named_modules()):
            if isinstance(getattr(layer, "quantize_w", None), Weights) and getattr(layer, "groups", 1) == 1:
                model.set_submodule(name, Alive(layer))
        return model


class Alive(nn.Module):
    """The layer with its quantized weights, without the output channels that are only its bias."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.channels, self.axis = len(layer.weight), 1 if isinstance(layer, nn.Conv2d) else -1
        w = layer.codes().decode()
        self.register_buffer("alive", w.flatten(1).any(1).nonzero().flatten())
        if isinstance(layer, nn.Conv2d):
            fixed = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
            settings = {key: getattr(layer, key) for key in fixed}
            kind = Same if isinstance(layer, Same) else nn.Conv2d
            self.layer = kind(layer.in_channels, len(self.alive), bias=False, **settings, device="meta")
        else:
            self.layer = nn.Linear(layer.in_features, len(self.alive), bias=False, device="meta")
        self.layer.weight = nn.Parameter(w[self.alive])
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        shape = list(y.shape)
        shape[self.axis] = self.channels
        y = y.new_zeros(shape).index_copy(self.axis, self.alive, y)
        if self.bias is None:
            return y
        return y + self.bias.to(y.dtype).view(-1, *[1] * (y.dim() - 2 if self.axis == 1 else 0))


def mean_bits(model: nn.Module) -> Tensor:
    """Q: bits per weight, over the layers that have a learned width."""
    layers = [layer for layer in model.modules() if isinstance(getattr(layer, "quantize_w", None), Weights)]
    bits = sum(layer.quantize_w.bits.relu().sum() * layer.weight[0].numel() for layer in layers)
    return bits / sum(layer.weight.numel() for layer in layers)
