"""Adaptive precision training: fixed-point formats that change while a network is trained."""

import math
from collections.abc import Iterable
from itertools import count
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from runner.core import reach
from runner.core.batch import Batch
from runner.core.dropout import Masks, uniform
from runner.core.precision import wide
from runner.core.schema import Count, Fraction, Natural, NonNegative, Range
from runner.hook import Hook
from runner.quantization import Begin, Transform, opening
from runner.quantization.fake import Float, Quantized, Target, attach
from runner.quantization.quantizer import Codes, straight

Word = Annotated[int, Range(2, 32)]
LONGEST = 32  # bits of a word
LOWEST = 4  # fraction bits below which a search does not go


class FixedPoint(nn.Module):
    """Weights as integers of `word` bits in units of 2^-fraction; rounded up or down at random in training."""

    masks: Masks | None = None

    def __init__(self, w: Tensor, name: str, word: int, fraction: int):
        super().__init__()
        self.name = name
        self.register_buffer("word", torch.tensor(word, device=w.device))
        self.register_buffer("fraction", torch.tensor(fraction, device=w.device))

    def forward(self, w: Tensor) -> tuple[Tensor, Tensor]:
        w = wide(w)
        up = uniform(w, self.masks, self.name) if self.training and self.masks is not None else 0.5
        value = fixed(w, self.word, self.fraction, up)
        return straight(value, w), value.new_ones(())

    def codes(self, w: Tensor) -> Codes:
        """Rounded to nearest, as in evaluation."""
        bits = int(self.word)
        with torch.no_grad():
            w = wide(w)
            scale = torch.exp2(-self.fraction.to(w.dtype))
            q = fixed(w, self.word, self.fraction, 0.5) / scale
        low = 2.0 ** (bits - 1)
        kind = torch.uint8 if bits <= 8 else torch.int64
        return Codes((q.double() + low).to(kind), scale, torch.full_like(scale, low), bits)


def fixed(w: Tensor, word: Tensor, fraction: Tensor, up: Tensor | float) -> Tensor:
    """floor(w * 2^fraction + up) in words, saturating, and back."""
    scale = torch.exp2(-fraction.to(w.dtype))
    half = torch.exp2(word.to(w.dtype) - 1)
    return torch.clamp((w / scale + up).floor(), -half, half - 1) * scale


class AdaPT(Transform, Hook):
    """AdaPT (Kummer et al., 2021, arXiv:2107.13490): weights in fixed point <WL, FL>, words of WL bits of which FL are
    fraction, layer by layer; formats are lowered as far as no information is lost and raised as gradients need it.

        w^ = clamp(floor(2^FL w + u), -2^(WL-1), 2^(WL-1) - 1) / 2^FL,   u uniform in [0, 1), straight through
        n gradients of a layer, each divided by its norm: diversity g = n / |their sum|,   L = ln g - 1
        lookback    l <- ceil(m ceil(clamp(l_max / g, l_min, l_max)) + (1 - m) l)
        resolution  r <- r + 1 where l = l_max, r - 1 where l = l_min, in [r_min, r_max]
        when n = l: the smallest FL >= 4, then the smallest WL > FL, for which the histogram of w^ with r bins over the
        range of w is that of w (their Kullback-Leibler divergence is 0), none above the present ones; then
            FL <- FL + s,   s = 1 unless L > 0; then of s1 = ceil(1 / L^2) and s2 = max(min(ceil(32 L^2), 32) - FL, 0)
            the smaller, their mean, rounded up, or the larger
            WL <- max(max(WL, FL) + 1, FL + buffer) and FL <= 32 - buffer, WL <= 32,   and n starts again from 0

    Settled from the authors' code (its optimizer MSGD_FP, its layers and its LeNet): the rules, the start at <8, 4>,
    l_min and r_min, the optimizer's defaults. It switches by lookback, some 10 to 100 steps; the paper's abstract says
    between epochs, which `min_lookback` and `max_lookback` equal to the steps of an epoch give; r then stays at r_min.
    Done otherwise here, each for a reason:

    - The code's divergence is none: it passes probabilities where logarithms are expected, and takes a value at or
      below 0 for no loss; of a weight it looks at the first row. Here the divergence is one, of all weights, rounded to
      nearest.
    - Its searches are bisections, of which the one for FL tests the lower end instead of the middle, and both return a
      format that lost information where there is one; and more bits do not always lose less. Here formats are tried
      from the shortest on, and the first that loses nothing is taken, else the present one.
    - It rounds gradients to <WL, FL> too, before dividing each tensor's by its norm; here they stay as they are but for
      the division. Biases stay in full precision; inputs do in either.
    - It changes between the smaller, the mean and the larger by whether the loss falls; here that is `raise_by`.
    - Its L1 penalty's weight was not found; the default is none. The penalty's subgradient is added after the sharpness
      method.

    In evaluation weights are rounded to nearest; in the code they are what the last update drew.

    In a federation sums, lookbacks, resolutions and formats are each client's own and go on over its rounds, so that a
    format is lowered and raised after as many of the client's own steps as by one machine. A client begins its first
    round with the server's formats, which are the clients' averages, rounded, and what is evaluated.

    Parameters
    ----------
    word, fraction : WL and FL at the start. Default 8 and 4.
    min_lookback, max_lookback : l_min, the first l, and l_max. Default 10 and 100.
    min_resolution, max_resolution : r_min, the first r, and r_max. Default 1 and 100.
    momentum : m. Default 0.33.
    buffer : default 8.
    raise_by : of the two steps the `min`, `mean` or `max`. Default `min`, with which the code starts.
    normalize : divide the gradient of every tensor by its norm. Default true.
    l1 : of a penalty on the sum of |w|, over the quantized layers. Default 0.
    ends : the first and the last layer; `same` as the others or `float`. Default `same`.
    begin : share of the steps in full precision before quantization begins; see `Transform`. Default 0.

    Raises
    ------
    ValueError
        A fraction that is not shorter than the word, a largest value below the smallest; from `prepare`, no layer.
    """

    maps = False  # it goes by the weights themselves

    def __init__(
        self,
        word: Word = 8,
        fraction: Natural = 4,
        min_lookback: Count = 10,
        max_lookback: Count = 100,
        min_resolution: Count = 1,
        max_resolution: Count = 100,
        momentum: Fraction = 0.33,
        buffer: Natural = 8,
        raise_by: Literal["min", "mean", "max"] = "min",
        normalize: bool = True,
        l1: NonNegative = 0.0,
        ends: Literal["same", "float"] = "same",
        begin: Begin = 0.0,
    ):
        if fraction >= word:
            raise ValueError(f"fraction={fraction} must be below word={word}, which has a sign too")
        if max_lookback < min_lookback or max_resolution < min_resolution:
            raise ValueError("max_lookback and max_resolution must not be below min_lookback and min_resolution")
        self.word, self.fraction, self.momentum, self.buffer = word, fraction, momentum, buffer
        self.min_lookback, self.max_lookback = min_lookback, max_lookback
        self.min_resolution, self.max_resolution = min_resolution, max_resolution
        self.raise_by, self.normalize, self.l1, self.ends, self.begin = raise_by, normalize, l1, ends, begin

    def begins(self, steps: int, steps_per_epoch: int) -> Iterable[reach.Begin]:
        yield from super().begins(steps, steps_per_epoch)
        lookback = self.min_lookback
        for n in count(1):  # the shortest that gradients can make it: one alone has diversity 1, more may have any
            wanted = self.max_lookback if n == 1 else self.min_lookback
            lookback = math.ceil(self.momentum * wanted + (1 - self.momentum) * lookback - 1e-9)
            if n >= lookback:
                break
        after = opening(self.begin, steps) + n - 1
        what = f"the first switch (min_lookback={self.min_lookback}, max_lookback={self.max_lookback})"
        yield reach.Begin(what, after, f"the formats stay at <{self.word}, {self.fraction}>", own=True)

    def prepare(self, model: nn.Module, batch: Batch) -> nn.Module:
        return attach(model, batch, self.word, self.ends, self.quantizers, self.begin)

    def quantizers(self, target: Target, x: Tensor) -> tuple[nn.Module, nn.Module]:
        return FixedPoint(target.layer.weight, f"{target.name} rounding", self.word, self.fraction), Float()

    def start(self, run) -> None:
        self.layers: dict[str, dict] = {}  # by the weight's name: the sum of gradients, their number, l and r
        self.device = run.device
        self.formats = {
            name: module for name, module in run.model.named_modules() if isinstance(module, FixedPoint)
        }  # of the model that is trained, whose buffers they are
        frozen = [name for name, layer in run.model.named_modules() if _frozen(layer)]
        if frozen:
            raise ValueError(
                f"quantization=adapt chooses formats by gradients, and {frozen[0]} has none, its weights being frozen"
            )

    def gradient(self, run) -> None:
        grads, layers = dict(run.weights.views(run.weights.grad)), self._quantized(run)
        if self.normalize and layers:
            for grad in grads.values():
                norm = grad.norm()
                grad.div_(torch.where(norm > 0, norm, 1.0))
        for name, layer in layers:
            grad = grads[name]
            if self.l1:
                grad.add_(layer.weight.detach().sign(), alpha=self.l1)
            seen = self.layers.setdefault(
                name, {"sum": torch.zeros_like(grad), "n": 0, "lookback": self.min_lookback, "r": self.min_resolution}
            )
            norm = grad.norm()
            seen["sum"] += grad / torch.where(norm > 0, norm, 1.0)
            seen["n"] += 1

    def step(self, run) -> None:
        for name, layer in self._quantized(run):
            seen, format_ = self.layers[name], layer.quantize_w
            length = seen["sum"].norm().item()
            diversity = seen["n"] / length if length else math.inf
            wanted = min(max(self.max_lookback / diversity, self.min_lookback), self.max_lookback)
            mixed = self.momentum * math.ceil(wanted) + (1 - self.momentum) * seen["lookback"]
            seen["lookback"] = math.ceil(mixed - 1e-9)
            step = (seen["lookback"] == self.max_lookback) - (seen["lookback"] == self.min_lookback)
            seen["r"] = min(max(seen["r"] + step, self.min_resolution), self.max_resolution)
            if seen["n"] >= seen["lookback"]:
                word, fraction = lowered(layer.weight.detach(), int(format_.word), int(format_.fraction), seen["r"])
                word, fraction = raised(word, fraction, diversity, self.buffer, self.raise_by)
                format_.word.fill_(word), format_.fraction.fill_(fraction)
                seen["sum"].zero_()
                seen["n"] = 0

    def _quantized(self, run) -> list[tuple[str, nn.Module]]:
        names = {id(parameter): name for name, parameter in run.model.named_parameters()}  # of a shared one, the first
        layers = [layer for layer in run.model.modules() if isinstance(layer, Quantized) and layer.quantizing]
        return [(names[id(layer.weight)], layer) for layer in layers]

    def state_dict(self) -> dict:
        formats = {name: [int(one.word), int(one.fraction)] for name, one in self.formats.items()}
        layers = {name: {**seen, "sum": seen["sum"].clone()} for name, seen in self.layers.items()}
        return {"layers": layers, "formats": formats}

    def load_state_dict(self, state: dict) -> None:
        self.layers = {
            name: {**seen, "sum": seen["sum"].to(self.device, copy=True)} for name, seen in state["layers"].items()
        }
        for name, (word, fraction) in state["formats"].items():
            self.formats[name].word.fill_(word), self.formats[name].fraction.fill_(fraction)

    def convert(self, model: nn.Module, batch: Batch) -> nn.Module:
        return model


def lowered(w: Tensor, word: int, fraction: int, bins: int) -> tuple[int, int]:
    """The shortest fraction, and then word, that lose no information at this resolution; else the present ones."""
    tried = range(min(LOWEST, fraction), fraction)
    fraction = next((shorter for shorter in tried if divergence(w, word, shorter, bins) == 0), fraction)
    tried = range(min(fraction + 1, word), word)
    return next((shorter for shorter in tried if divergence(w, shorter, fraction, bins) == 0), word), fraction


def divergence(w: Tensor, word: int, fraction: int, bins: int) -> float:
    """KL of the histogram of w to that of w in fixed point, over the range of w; exactly 0 where they are the same."""
    w = wide(w).flatten().cpu()
    low, high = w.min().item(), w.max().item()
    rounded = fixed(w, torch.tensor(word), torch.tensor(fraction), 0.5)
    p, q = (torch.histc(v, bins, low, high).double() for v in (w, rounded))
    if torch.equal(p, q):
        return 0.0
    if not q.sum():
        return math.inf
    p, q = p / p.sum(), q / q.sum()
    return torch.where(p > 0, p * (p / q).log(), 0.0).sum().item()


def raised(word: int, fraction: int, diversity: float, buffer: int, by: str) -> tuple[int, int]:
    """The format with which gradients of this diversity are not lost."""
    step = 1
    if math.isfinite(diversity) and (excess := math.log(diversity) - 1) > 0:
        small = max(math.ceil(1 / excess**2), 1)
        large = max(min(math.ceil(32 * excess**2), LONGEST) - fraction, 0)
        step = {"min": min(small, large), "mean": math.ceil((small + large) / 2), "max": max(small, large)}[by]
    fraction = min(fraction + step, LONGEST)
    word = min(max(word, fraction) + 1, LONGEST)
    fraction = min(fraction, LONGEST - buffer)
    return max(min(fraction + buffer, LONGEST), word), fraction


def _frozen(layer: nn.Module) -> bool:
    return isinstance(getattr(layer, "quantize_w", None), FixedPoint) and not layer.weight.requires_grad
