"""Fake quantization: numbers rounded to a grid in floating point, and the layers that use them.

    q = clamp(round(x / s), low, high),   x^ = q * s

An integer zero point z is in the bounds: low = -z and high = 2^bits - 1 - z, so that zero is always on the grid and
symmetric, unsigned and affine quantizers are one formula. With one bit and signs there are the two levels -s and s.

Layers multiply the integers, halved as often as there are bits so that no sum overflows in fp16, and then scale the
result. Sums of integers are exact whatever their order: what is trained is what integer arithmetic will compute, ties
(in a maximum, at a ReLU) are ties in every batch and pack, and 8 bits fit into bf16. So a quantizer returns
(levels, step) with x^ = levels * step.
"""

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from runner.core import distributed
from runner.core.batch import Batch
from runner.core.precision import wide
from runner.core.schema import Range
from runner.quantization.standin import bound, filled, inputs

Bits = Annotated[int, Range(1, 8)]
Percent = Annotated[float, Range(50, 100)]
Ranges = Literal["lsq", "minmax", "percentile", "mse"]
SMALLEST = 1e-8  # a scale below it is taken as this
FULL = 32  # bits of a number in full precision
CLIPS = 100  # thresholds that the range by MSE tries
MOMENTUM = 0.1  # of a new batch in the range of observed inputs, as in BatchNorm

log = logging.getLogger(__name__)


@dataclass
class Codes:
    """A tensor as integers: (values - zero) * scale."""

    values: Tensor  # uint8 in [0, 2^bits), in the tensor's shape
    scale: Tensor  # () or broadcast against `values`
    zero: Tensor  # the same; half an integer where the levels are symmetric without a zero
    bits: int

    def decode(self) -> Tensor:
        return steps(self.values, self.zero, self.scale.dtype) * self.scale


def steps(values: Tensor, zero: Tensor, dtype: torch.dtype) -> Tensor:
    """values - zero, which is exact: words of 32 bits are more than a float of 32 bits can hold, their distances from
    zero are what such floats were rounded to."""
    if values.dtype == torch.uint8:
        return values.to(dtype) - zero
    return (values.double() - zero.double()).to(dtype)


class Levels(torch.autograd.Function):
    """q * unit, and its gradients straight through the rounding, v = x / s:

        d q / d x = 1 / s and d q / d s = -v / s where low < v < high, else 0

    so that x^ = q * s has the gradients of LSQ (Esser et al., ICLR 2020, arXiv:1902.08153, equations 1 to 5):
    d x^ / d s is round(v) - v inside, low where v <= low, high where v >= high. s, low and high broadcast against x.
    With `binary` round is the sign (+1 at zero), which is not in the paper.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, scale: Tensor, low: Tensor, high: Tensor, unit: float, binary: bool) -> Tensor:
        return rounded(x / scale, low, high, binary).mul_(unit)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        *tensors, ctx.unit, _ = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        x, scale, low, high = ctx.saved_tensors
        v = x / scale
        of_x = (grad * (ctx.unit / scale)).mul_((v > low) & (v < high))
        of_scale = -v.mul_(of_x).sum_to_size(scale.shape) if ctx.needs_input_grad[1] else None
        return of_x, of_scale, None, None, None, None


def rounded(v: Tensor, low: Tensor, high: Tensor, binary: bool) -> Tensor:
    """The level of every v, counted in steps; v itself is overwritten, as memory costs more than arithmetic here."""
    return sign(v) if binary else torch.clamp(v.round_(), low, high)


def sign(x: Tensor, signed: bool = True) -> Tensor:
    """-1 or 1, the latter at zero; of what is never negative 0 or 1, the former at zero."""
    one = torch.ones_like(x)
    return torch.where(x < 0, -one, one) if signed else torch.where(x > 0, one, torch.zeros_like(x))


def straight(values: Tensor, through: Tensor) -> Tensor:
    """`values`, with the gradient of `through`."""
    return values.detach() + (through - through.detach())


class Quantizer(nn.Module):
    """A uniform fake quantizer, made for the tensor `x` that calibrates it.

    Learned: the scale s is a parameter with LSQ's gradient times g = 1 / sqrt(N * Q_P) (Esser et al., section 2.2).
    N is the number of elements that share it, of one sample for inputs, and Q_P the highest level (with a zero point:
    the number of steps). It is used as max(|s|, 1e-8). Of zeros it starts as `runner.quantization.standin` says.
    Observed: the scale follows the range of what passes in training; of weights the present one, of inputs a moving
    average. The passes of a step after the first leave it alone, as they leave BatchNorm's statistics.

    Parameters
    ----------
    x : (B, ...) inputs, or weights.
    bits : 1 to 8.
    signed : whether there are negative levels: -2^(bits-1) to 2^(bits-1) - 1, else 0 to 2^bits - 1.
    affine : an integer zero point, from the range; `signed` does not matter then.
    channels : a scale for each index of the first axis.
    learned : see above.
    range : from x. lsq: s = 2 * mean|x| / sqrt(Q_P), as the paper initialises it. minmax: the whole range. percentile:
        less (100 - percentile) % of the elements at either end, unless all others are zero. mse: the hundredths of the
        whole range with the smallest squared error.
    percentile : for that range.
    weight : whether x is weights rather than inputs.

    Raises
    ------
    ValueError
        affine with range=lsq, which has no offset, or with one bit.
    """

    def __init__(
        self,
        x: Tensor,
        bits: int,
        *,
        signed: bool = True,
        affine: bool = False,
        channels: bool = False,
        learned: bool = True,
        range: Ranges = "lsq",
        percentile: float = 99.9,
        weight: bool = False,
    ):
        super().__init__()
        if affine and (range == "lsq" or bits == 1):
            raise ValueError(f"affine=true needs {'two bits or more' if bits == 1 else 'another range than lsq'}")
        self.bits, self.affine, self.channels, self.learned = bits, affine, channels, learned
        self.range, self.percentile, self.weight = range, percentile, weight
        self.binary = bits == 1 and signed
        self.track_running_stats = not learned  # where it is set, the engine unsets it in passes after the first
        x = wide(x.detach())
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        low, high = (-1, 1) if self.binary else (low, high)
        self.register_buffer("low", torch.tensor(low, device=x.device))
        self.register_buffer("high", torch.tensor(high, device=x.device))
        bottom, top = self.span(x)
        if learned:
            scale, self.low, self.high = self.grid(bottom, top)
            self.scale = nn.Parameter(scale)
        else:
            self.register_buffer("bottom", bottom)
            self.register_buffer("top", top)
        elements = (x if weight else x[0]).numel() / bottom.numel()
        g = x.new_tensor((elements * (2**bits - 1 if affine else high)) ** -0.5)
        self.register_buffer("g", g, persistent=False)

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Scale and bounds as if it had been made for this tensor; signs stay."""
        bottom, top = self.span(wide(x))
        if self.learned:
            for mine, now in zip((self.scale, self.low, self.high), self.grid(bottom, top), strict=True):
                mine.copy_(now)
        else:
            self.bottom.copy_(bottom), self.top.copy_(top)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = wide(x)
        if not self.learned and self.training and self.track_running_stats:
            self.observe(x.detach())
        scale, low, high = self.present()
        unit = 2.0**-self.bits
        return Levels.apply(x, scale, low, high, unit, self.binary), scale / unit

    def codes(self, x: Tensor) -> Codes:
        """What `forward` returns, as integers."""
        with torch.no_grad():
            scale, low, high = self.present()
            q = rounded(wide(x) / scale, low, high, self.binary)
        if self.binary:
            return Codes(q.add(1).div(2).to(torch.uint8), 2 * scale, torch.full_like(scale, 0.5), 1)
        return Codes((q - low).to(torch.uint8), scale, -low.to(scale.dtype), self.bits)

    def present(self) -> tuple[Tensor, Tensor, Tensor]:
        """Scale and bounds."""
        if self.learned:
            scale = self.scale.abs().clamp(min=SMALLEST)
            return scale.detach() + self.g * (scale - scale.detach()), self.low, self.high
        return self.grid(self.bottom, self.top)

    def grid(self, bottom: Tensor, top: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scale and bounds of the smallest grid that holds the range, and zero."""
        bottom, top = bottom.clamp(max=0), top.clamp(min=0)
        if self.affine:
            steps = 2**self.bits - 1
            scale = ((top - bottom) / steps).clamp(min=SMALLEST)
            zero = (-bottom / scale).round().to(self.low.dtype)
            return scale, -zero, steps - zero
        scale = torch.maximum(top / self.high, -bottom / (-self.low).clamp(min=1))
        return scale.clamp(min=SMALLEST), self.low, self.high

    def span(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The range to be represented, in the shape of the scale."""
        rows = x.flatten(1) if self.channels else x.reshape(1, -1)
        if self.learned:  # what is observed follows by itself
            rows = filled(rows, bound(x)) if self.weight else inputs(rows, bool(self.low < 0))
        if self.range == "lsq":
            top = 2 * rows.abs().mean(1, keepdim=True) * self.high.to(x.dtype).sqrt()
            bottom = -top * (self.low < 0)
        elif self.range == "percentile":
            count = rows.shape[1]
            cut = min(round((1 - self.percentile / 100) * count), (count - 1) // 2)
            bottom, top = (rows.kthvalue(k, 1, keepdim=True).values for k in (1 + cut, count - cut))
            nothing = (bottom == 0) & (top == 0)  # as where more are zeros than the percentile leaves out
            bottom = bottom.where(~nothing, rows.amin(1, keepdim=True))
            top = top.where(~nothing, rows.amax(1, keepdim=True))
        else:
            bottom, top = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
        if self.range == "mse":
            bottom, top = self._clipped(rows, bottom, top)
        shape = (-1, *[1] * (x.dim() - 1)) if self.channels else ()
        return bottom.reshape(shape), top.reshape(shape)

    def _clipped(self, rows: Tensor, bottom: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
        """The hundredths of the whole range with the smallest squared error.

        What is rounded to a level lies between the midpoints beside it, so that of sorted rows with running sums

            sum (x - level)^2 = sum x^2 + sum_levels (n * level^2 - 2 * level * sum x)     (n, sum x: of that level)

        costs the same for every grid, however many elements there are.
        """
        rows = rows.sort(1).values.double()
        sums, square = F.pad(rows.cumsum(1), (1, 0)), rows.square().sum(1, keepdim=True)
        best, least = torch.ones_like(top), torch.full_like(square, torch.inf)
        steps = torch.arange(0, 2**self.bits, device=rows.device) * (2 if self.binary else 1)
        for hundredths in range(CLIPS, 0, -1):
            part = hundredths / CLIPS
            scale, low, _ = self.grid(bottom * part, top * part)
            levels = (low + steps) * scale.double()
            ends = torch.searchsorted(rows, (levels[:, 1:] + levels[:, :-1]) / 2)
            ends = F.pad(F.pad(ends, (1, 0)), (0, 1), value=rows.shape[1])
            n, total = ends.diff(), sums.gather(1, ends).diff()
            error = square + (n * levels.square() - 2 * levels * total).sum(1, keepdim=True)
            best, least = torch.where(error < least, part, best), torch.minimum(error, least)
        return bottom * best, top * best

    def observe(self, x: Tensor) -> None:
        for seen, now in zip((self.bottom, self.top), self.span(x), strict=True):
            seen.copy_(now if self.weight else seen + MOMENTUM * (now - seen))

    def extra_repr(self) -> str:
        return f"{self.bits} bits, {'learned' if self.learned else 'observed'}"


# ---- layers


class Float(nn.Module):
    """Inputs as they are."""

    bits = FULL

    def forward(self, x: Tensor) -> tuple[Tensor, float]:
        return x, 1.0


class Same(nn.Conv2d):
    """A convolution that pads with zeros as TensorFlow's SAME does, for an output of ceil(size / stride); what is odd
    goes to the right and below."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        sides: list[int] = []
        for size, kernel, stride, dilation in zip(x.shape[-2:], self.kernel_size, self.stride, self.dilation):
            missing = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
            sides = [missing // 2, missing - missing // 2, *sides]  # F.pad wants the last axis first
        return super()._conv_forward(F.pad(x, sides), weight, bias)


class Quantized:
    """What quantized layers share.

    quantizing : whether they quantize now, or are the layers that they were. It changes between steps only. Where it is
    ever to change (`late`) a buffer says it too, to whoever loads the weights or averages them: see `train`.
    """

    quantizing = True

    def late(self, begin: float) -> None:
        self.begin = str(begin)  # no number: runs that differ in it are not trained side by side
        self.register_buffer("on", torch.zeros((), dtype=torch.int64, device=self.weight.device))
        self.quantizing = False

    def switch(self, on: bool) -> None:
        self.quantizing = on
        self.on.fill_(int(on))

    def train(self, mode: bool = True):
        """As ever; and it is from here on what the buffer says."""
        if "on" in self._buffers:
            self.quantizing = bool(self.on)
        return super().train(mode)

    def codes(self) -> Codes:
        """The weights as they would be stored."""
        return self.quantize_w.codes(self.weight)


class QuantizedLinear(Quantized, nn.Linear):
    """A linear layer of quantized inputs and weights; the bias is as it was."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.quantizing:
            return super().forward(x)
        (x, of_x), (w, of_w) = self.quantize_x(x), self.quantize_w(self.weight)
        return scaled(F.linear(x, w), of_x * of_w.flatten(), self.bias)


class QuantizedConv2d(Quantized, nn.Conv2d):
    """A convolution of quantized inputs and weights; the bias is as it was. Zero padding is a level of the inputs."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.quantizing:
            return super().forward(x)
        (x, of_x), (w, of_w) = self.quantize_x(x), self.quantize_w(self.weight)
        bias = None if self.bias is None else self.bias.view(-1, 1, 1)
        return scaled(self._conv_forward(x, w, None), (of_x * of_w).view(-1, 1, 1), bias)


class QuantizedSame(QuantizedConv2d, Same):
    """The same of a convolution that pads as TensorFlow does."""


def scaled(y: Tensor, step: Tensor, bias: Tensor | None) -> Tensor:
    y = Scaled.apply(y, step)
    return y if bias is None else y + bias.to(y.dtype)


class Scaled(torch.autograd.Function):
    """y * step in the type of y; the gradient by the step, a sum over all of y, in fp32 at least."""

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, step: Tensor) -> Tensor:
        return y * step.to(y.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        y, step = ctx.saved_tensors
        of_step = (wide(grad) * y).sum_to_size(step.shape) if ctx.needs_input_grad[1] else None
        return grad * step.to(grad.dtype), of_step


def now_quantized(model: nn.Module) -> list[nn.Module]:
    """Its layers that quantize at present."""
    return [layer for layer in model.modules() if isinstance(layer, Quantized) and layer.quantizing]


QUANTIZED = {nn.Linear: QuantizedLinear, nn.Conv2d: QuantizedConv2d, Same: QuantizedSame}
Ends = Literal["float", "same"] | Bits


@dataclass
class Target:
    """A layer that is to be quantized, as the calibration batch passed through it."""

    name: str
    layer: nn.Module
    bits: int  # the option's, or `ends`
    end: bool  # whether they are `ends`
    signed: bool  # whether an input was negative


def targets(model: nn.Module, batch: Batch, bits: int, ends: Ends) -> dict[str, Target]:
    """Every Linear and Conv2d that the batch passes through, by name and in the order of that, and what it is to get.

    The first and the last layer are those that the batch passes first and last. Of subclasses those that compute what
    Linear, Conv2d or `Same` do are targets, and become those (see `kind`). The others, and layers that the batch does
    not pass through as modules (a fused attention reads its projection's weight itself), are named in a warning.

    ends : bits of the first and last layer; "same" as the others, "float" no target.

    Raises
    ------
    ValueError
        There is none; the message says what there was.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    kinds: dict[str, type | None] = {}
    negative: set[str] = set()

    def look(name: str, x: Tensor) -> None:
        if name not in kinds:
            kinds[name] = kind(layers[name], x)
        if bool((x < 0).any()):
            negative.add(name)

    watch(model, batch.x, layers, look)
    order = [name for name, found in kinds.items() if found is not None]
    special = {*order[:1], *order[-1:]} if ends != "same" else set()
    chosen = {
        name: Target(name, layers[name], ends if name in special else bits, name in special, name in negative)
        for name in order
        if not (name in special and ends == "float")
    }
    if not chosen:
        raise ValueError(missing(model, layers, order))
    left = {name: layer for name, layer in layers.items() if kinds.get(name) is None}
    if left and distributed.rank == 0:
        log.warning("%s", untouched(left, kinds))
    for name, target in chosen.items():
        target.layer.__class__ = kinds[name]
    return chosen


def kind(layer: nn.Module, x: Tensor) -> type | None:
    """Which of the layers that have a quantized form computes what this one does, or None.

    A subclass has nothing but a weight and a bias, and the same output in training and evaluation, also for an image
    that is larger by a row and a column.
    """
    if type(layer) in QUANTIZED:
        return type(layer)
    if layer._buffers or layer._modules or layer._parameters.keys() != {"weight", "bias"}:
        return None
    linear = isinstance(layer, nn.Linear)
    trials = [(x, False), (x if linear else F.pad(x, (0, 1, 0, 1)), True)]
    for candidate in (nn.Linear,) if linear else (nn.Conv2d, Same):
        twin = copy.copy(layer)
        twin.__class__ = candidate
        if all(_alike(layer, twin, *trial) for trial in trials):
            return candidate
    return None


def _alike(layer: nn.Module, twin: nn.Module, x: Tensor, training: bool) -> bool:
    before, layer.training = layer.training, training
    try:
        expected = layer.forward(x)  # not the call, whose hooks brought us here
    finally:
        layer.training = before
    try:
        found = twin.forward(x)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # without the layer's own padding the kernel is larger than the image
        return False
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-4, atol=1e-6)


def untouched(left: dict[str, nn.Module], kinds: dict) -> str:
    """One line on layers that stay in full precision, by what they are and why, with an example each."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, layer in left.items():
        why = "computes something else" if name in kinds else "not called as a module"
        groups.setdefault((type(layer).__name__, why), []).append(name)
    parts = [f"{len(names)} {of} ({why}; {names[0]})" for (of, why), names in groups.items()]
    return f"left in full precision: {', '.join(parts)}"


def attach(model: nn.Module, batch: Batch, bits: int, ends: Ends, make: Callable, begin: float = 0.0) -> nn.Module:
    """Give every target its quantizers, in place: the layers keep their names and tensors. Raises as `targets` does.

    make(target, x) -> (quantize_w, quantize_x) : modules for one layer that return (levels, step), from what it is and
        its (B, ...) input in full precision. The step of weights is () or has one element for each output channel; that
        of inputs says its `bits`.
    begin : above 0 the layers do not quantize until `runner.quantization.late` switches them.
    """
    chosen = targets(model, batch, bits, ends)
    made: dict[str, tuple[nn.Module, nn.Module]] = {}

    def calibrate(name: str, x: Tensor) -> None:
        if name not in made:  # of a layer that is used several times, the first use
            made[name] = make(chosen[name], x)

    watch(model, batch.x, {name: target.layer for name, target in chosen.items()}, calibrate)
    for name, (quantize_w, quantize_x) in made.items():
        layer = chosen[name].layer
        layer.__class__ = QUANTIZED[type(layer)]
        layer.quantize_w, layer.quantize_x = quantize_w.train(layer.training), quantize_x.train(layer.training)
        if begin:
            layer.late(begin)
    return model


@torch.no_grad()
def watch(model: nn.Module, x: Tensor, layers: dict[str, nn.Module], see: Callable[[str, Tensor], None]) -> None:
    """One forward pass that shows the input of every layer to see(name, x).

    BatchNorm normalises with the batch's statistics meanwhile and keeps its own: those of a model that is not trained
    yet say nothing.
    """
    modes = [(module, module.training) for module in model.modules()]
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    handles = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: see(name, inputs[0]))
        for name, layer in layers.items()
    ]
    try:
        model.eval()
        for norm in norms:
            norm.training, norm.track_running_stats = True, False
        model(x)
    finally:
        for handle in handles:
            handle.remove()
        for norm in norms:
            norm.track_running_stats = True
        for module, training in modes:
            module.training = training


def missing(model: nn.Module, layers: dict, order: list[str]) -> str:
    if order:
        shown = " and ".join(order)
        return (
            f"nothing is left to quantize: {shown} are the first and the last of the Linear and Conv2d layers in "
            f"{type(model).__name__}, and ends=float leaves those as they are; take ends=same or a deeper model"
        )
    owners = (module for module in model.modules() if next(module.parameters(False), None) is not None)
    kinds = ", ".join(sorted({type(module).__name__ for module in owners}))
    why = "none of them is called" if layers else f"its layers with parameters are {kinds}"
    return f"nothing to quantize: looked for Linear and Conv2d in {type(model).__name__}, and {why}"


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """Its quantized layers by name: those that say how their weights are stored."""
    return {name: layer for name, layer in model.named_modules() if hasattr(layer, "codes") and hasattr(layer, "bias")}


def plain(model: nn.Module) -> nn.Module | None:
    """A copy that computes with the weights as they are in training, in full precision; None where there are none."""
    kinds = {quantized: kind for kind, quantized in QUANTIZED.items()}
    model = copy.deepcopy(model).eval()
    for layer in layers(model).values():
        if type(layer) not in kinds:
            return None
        layer.__class__ = kinds[type(layer)]
        del layer.quantize_w, layer.quantize_x
    return model
