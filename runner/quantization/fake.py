"""Layers that compute with fake-quantized numbers, and how a model gets them: see `runner.quantization.quantizer`."""

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from runner.core import distributed
from runner.core.batch import Batch
from runner.core.precision import wide
from runner.quantization.quantizer import FULL, Bits, Codes
from runner.transform.maps import MAPPED, MappedConv2d, MappedLinear, MappedSame, Same, effective

log = logging.getLogger(__name__)


class Float(nn.Module):
    """Inputs as they are."""

    bits = FULL

    def forward(self, x: Tensor) -> tuple[Tensor, float]:
        return x, 1.0


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
        return self.quantize_w.codes(effective(self))


class QuantizedLinear(Quantized, MappedLinear):
    """A linear layer of quantized inputs and weights; the bias is as it was."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.quantizing:
            return super().forward(x)
        (x, of_x), (w, of_w) = self.quantize_x(x), self.quantize_w(effective(self))
        return scaled(F.linear(x, w), of_x * of_w.flatten(), self.bias)


class QuantizedConv2d(Quantized, MappedConv2d):
    """A convolution of quantized inputs and weights; the bias is as it was. Zero padding is a level of the inputs."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.quantizing:
            return super().forward(x)
        (x, of_x), (w, of_w) = self.quantize_x(x), self.quantize_w(effective(self))
        bias = None if self.bias is None else self.bias.view(-1, 1, 1)
        return scaled(self._conv_forward(x, w, None), (of_x * of_w).view(-1, 1, 1), bias)


class QuantizedSame(QuantizedConv2d, MappedSame):
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
QUANTIZED |= {MAPPED[kind]: quantized for kind, quantized in QUANTIZED.items()}
Ends = Literal["float", "same"] | Bits


@dataclass
class Target:
    """A layer that is to be quantized, as the calibration batch passed through it."""

    name: str
    layer: nn.Module
    bits: int  # the option's, or `ends`
    end: bool  # whether they are `ends`
    signed: bool  # whether an input was negative

    @property
    def weight(self) -> Tensor:
        return effective(self.layer)


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
    kinds = {QUANTIZED[kind]: kind for kind in MAPPED}
    model = copy.deepcopy(model).eval()
    for layer in layers(model).values():
        if type(layer) not in kinds:
            return None
        kind = kinds[type(layer)]
        layer.__class__ = MAPPED[kind] if hasattr(layer, "maps") else kind
        del layer.quantize_w, layer.quantize_x
    return model
