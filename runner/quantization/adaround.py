"""Adaptive rounding."""

import math
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from runner.core.batch import Batch
from runner.core.schema import Count, Fraction, NonNegative, Positive, Range, When
from runner.quantization.deploy import Stored, layers, seen
from runner.quantization.fake import targets
from runner.quantization.fold import consumers
from runner.quantization.ptq import PTQ, output
from runner.quantization.quantizer import Codes, Percent, Ranges

ZETA, GAMMA = 1.1, -0.1  # the sigmoid is stretched by them, so that it reaches 0 and 1
HIGH, LOW = 20.0, 2.0  # beta, at the start and at the end
Several = Annotated[int, Range(2, 8)]


def rectified(v: Tensor) -> tuple[Tensor, Tensor]:
    """h(V), equation 23, and its derivative."""
    sigmoid = v.sigmoid()
    stretched = (sigmoid * (ZETA - GAMMA)).add_(GAMMA)
    h = stretched.clamp(0, 1)
    slope = torch.addcmul(sigmoid, sigmoid, sigmoid, value=-1).mul_(ZETA - GAMMA)
    return h, slope.mul_(h == stretched)


def start(rest: Tensor) -> Tensor:
    """The V whose h is `rest`, which is in [0, 1)."""
    return -torch.log((ZETA - GAMMA) / (rest - GAMMA) - 1)


def pull(h: Tensor, beta: float) -> Tensor:
    """The derivative of the regulariser by h: d (1 - |2h - 1|^beta) / dh, equation 24."""
    t = (2 * h).sub_(1)
    return t.abs().pow_(beta - 2).mul_(t).mul_(-2 * beta)


def annealed(step: int, steps: int, warm: float, high: float, low: float) -> float | None:
    """beta: along a cosine from high to low; None in the first part of the steps, which has no regulariser."""
    first = warm * steps
    if step < first:
        return None
    return low + 0.5 * (high - low) * (1 + math.cos(math.pi * (step - first) / (steps - first)))


class AdaRound(PTQ):
    """AdaRound (Nagel et al., ICML 2020, arXiv:2004.10568): learn for each weight of a trained network whether it is
    rounded up or down, layer by layer, on unlabelled samples,

        W~ = s * clip(floor(W / s) + h(V), n, p),   h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1)
        minimise  ||f(W x + b) - f(W~ x^ + b)||^2 + weight * sum(1 - |2 h(V) - 1|^beta)          equations 21 to 25

    with zeta = 1.1 and gamma = -0.1. x is the layer's input in full precision, x^ the one behind the layers that have
    been rounded before, quantized where inputs are. f is a ReLU that alone uses the layer's output, else nothing. V
    starts with h(V) = W / s - floor(W / s); at the end a weight is rounded up where h(V) >= 1/2. s is that of `PTQ`,
    with BatchNorm folded. A layer that ends with a larger error on the calibration samples than the same weights
    rounded to nearest keeps those.

    The squared error is summed over channels and averaged over samples and positions; the optimizer is Adam with its
    defaults on batches of 32; the regulariser is off for the first 20 % of the steps, then beta falls along a cosine
    from 20 to 2. All of that, and lambda, is as in AIMET, the library of the authors' company (aimet_torch/adaround:
    adaround_loss.py, adaround_optimizer.py, adaround_weight.py). It takes 10000 steps at 8 bits, the default here, and
    15000 below; what the paper has was not read. The samples of a batch come from a generator of its own: the result
    depends on the trained network and the calibration samples alone.

    Parameters
    ----------
    bits : of weights, 2 to 8. Default 4.
    inputs : bits of inputs; `float` leaves them in full precision, as in the paper's main results. Default `float`.
    ends, channels, affine, range, percentile, calibration : see `PTQ`.
    steps : for every layer. Default 10000.
    lr : of Adam. Default 0.001.
    weight : lambda, of the regulariser. Default 0.01.
    warm : part of the steps without it. Default 0.2.
    samples : of a batch. Default 32.

    Raises
    ------
    ValueError
        `affine` with `range=lsq`; from `prepare`, no layer to quantize.
    """

    def __init__(
        self,
        bits: Several = 4,
        inputs: Literal["same", "float"] | Several = "float",
        ends: Literal["float", "same"] | Several = 8,
        channels: bool = False,
        affine: bool = False,
        range: Ranges = "mse",
        percentile: Annotated[Percent, When("range", "percentile")] = 99.9,
        steps: Count = 10000,
        lr: Positive = 1e-3,
        weight: NonNegative = 0.01,
        warm: Fraction = 0.2,
        samples: Count = 32,
        calibration: Count = 1024,
    ):
        super().__init__(bits, inputs, ends, channels, affine, range, percentile, calibration)
        self.steps, self.lr, self.weight, self.warm, self.samples = steps, lr, weight, warm, samples

    def fit(self, full: nn.Module, quantized: nn.Module, batch: Batch) -> None:
        rectify = rectifiers(full, batch.x[:2])
        found = layers(quantized)
        for name in targets(full, batch, self.bits, self.ends):
            layer = found[name]
            _, wanted = seen(full, full.get_submodule(name), batch.x)
            x, _ = seen(quantized, layer, batch.x)
            levels, step = layer.quantize_x(x)
            layer.quantize_w = Stored(self.learn(layer, levels * step, wanted, name in rectify))

    def learn(self, layer: nn.Module, x: Tensor, wanted: Tensor, rectify: bool) -> Codes:
        """The layer's weights as integers, from its (quantized) inputs and its outputs in full precision."""
        act = torch.relu if rectify else nn.Identity()
        axis = 1 if isinstance(layer, nn.Conv2d) else -1
        with torch.no_grad():
            scale, low, high = layer.quantize_w.present()
            wanted, v = act(wanted), layer.weight / scale
            floor = v.floor()
            free = (floor >= low) & (floor < high)  # the others are on a bound of the grid wherever h is
            bound, unit = torch.clamp(floor, low, high) * scale, free * scale
        draw = torch.Generator().manual_seed(0)
        v = start(v - floor)
        optimizer = torch.optim.Adam([v], self.lr, fused=True)
        for step in range(self.steps):  # derivatives by hand: a third of the time
            rows = torch.randperm(len(x), generator=draw)[: self.samples].to(x.device)
            h, slope = rectified(v)
            w = torch.addcmul(bound, h, unit).requires_grad_()
            with torch.enable_grad():
                y = act(output(layer, x.index_select(0, rows), w))
            (by_w,) = torch.autograd.grad(y, w, y.detach() - wanted.index_select(0, rows))
            by_h = (by_w * unit).mul_(2 * y.shape[axis] / y.numel())
            if (beta := annealed(step, self.steps, self.warm, HIGH, LOW)) is not None:
                by_h.add_(pull(h, beta), alpha=self.weight)
            v.grad = by_h.mul_(slope)
            optimizer.step()
        with torch.no_grad():
            q = torch.clamp(floor + (rectified(v)[0] >= 0.5), low, high)
            learned = Codes((q - low).to(torch.uint8), scale, -low.to(scale.dtype), layer.quantize_w.bits)
            nearest = layer.codes()
            made = (act(output(layer, x, codes.decode())) for codes in (learned, nearest))
            errors = [(y - wanted).double().square().mean() for y in made]
        return learned if errors[0] <= errors[1] else nearest


def rectifiers(model: nn.Module, x: Tensor) -> set[str]:
    """The Linear and Conv2d layers whose output goes through a ReLU and nowhere else."""
    if not x.is_floating_point():  # ids, from which nothing is traced; the networks that embed them have no ReLU here
        return set()
    made: dict[str, list] = {}
    handles = [
        module.register_forward_hook(lambda _, __, made_, name=name: made.setdefault(name, []).append(made_.grad_fn))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    try:
        with torch.enable_grad():
            out = model(x.detach().requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    uses = consumers(out)
    behind = {source for node in uses if node.name() == "ReluBackward0" for source, _ in node.next_functions}
    return {name for name, nodes in made.items() if all(node in behind and uses[node] == 1 for node in nodes)}
