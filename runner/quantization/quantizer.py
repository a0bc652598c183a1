"""Fake quantization: numbers rounded to a grid in floating point.

    q = clamp(round(x / s), low, high),   x^ = q * s

An integer zero point z is in the bounds: low = -z and high = 2^bits - 1 - z, so that zero is always on the grid and
symmetric, unsigned and affine quantizers are one formula. With one bit and signs there are the two levels -s and s.

Layers multiply the integers, halved as often as there are bits so that no sum overflows in fp16, and then scale the
result. Sums of integers are exact whatever their order: what is trained is what integer arithmetic will compute, ties
(in a maximum, at a ReLU) are ties in every batch and pack, and 8 bits fit into bf16. So a quantizer returns
(levels, step) with x^ = levels * step.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
