"""BatchNorm folded into the layer before it, or with statistics of other layers before it."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from runner.quantization.deploy import PART


def fold(model: nn.Module, x: Tensor) -> dict[str, str]:
    """Fold every BatchNorm that alone uses the output of a Conv2d or Linear, in place; its evaluation does not change.

        W <- W * f,   b <- (b - mean) * f + beta,   f = gamma / sqrt(var + eps)

    Which layers belong together is read off one forward of `x`, a batch of inputs, in evaluation mode: any model will
    do, timm's included, whose BatchNorm layers with an activation keep that. Layers that are used twice or that are
    quantized already stay. Returns for the name of each folded BatchNorm that of the layer before it; the model is in
    evaluation mode then.
    """
    model.eval()
    if not any(isinstance(module, _BatchNorm) for module in model.modules()):
        return {}  # nor can every input be traced: ids have no gradient
    users: dict[str, list[str]] = {}
    outputs: dict[str, Tensor] = {}
    calls: list[str] = []

    def made(name: str, output: Tensor) -> None:
        outputs[name] = output

    def used(name: str, value: Tensor) -> None:
        calls.append(name)
        for source, output in outputs.items():
            if output is value:
                users.setdefault(source, []).append(name)

    handles = []
    for name, module in model.named_modules():
        if type(module) in (nn.Conv2d, nn.Linear):
            handles.append(module.register_forward_pre_hook(lambda _, inputs, name=name: calls.append(name)))
            handles.append(module.register_forward_hook(lambda _, inputs, output, name=name: made(name, output)))
        elif isinstance(module, _BatchNorm) and module.running_mean is not None:
            handles.append(module.register_forward_pre_hook(lambda _, inputs, name=name: used(name, inputs[0])))
    try:
        with torch.enable_grad():
            out = model(x.detach().requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    uses = consumers(out)
    folded = {}
    for name, (norm, *others) in users.items():
        output = outputs[name]
        alone = not others and uses.get(output.grad_fn) == 1 and calls.count(name) == calls.count(norm) == 1
        if alone and (output.dim() == 4 or isinstance(model.get_submodule(name), nn.Linear) and output.dim() == 2):
            _fold(model.get_submodule(name), model.get_submodule(norm))
            model.set_submodule(norm, _rest(model.get_submodule(norm)))
            folded[norm] = name
    return folded


def consumers(out) -> dict:
    """How many operations use what each node of the graph behind the output made."""
    uses: dict = {}
    seen: set = set()
    todo = [tensor.grad_fn for tensor in (out.logits, out.features) if tensor.grad_fn is not None]
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        for source, _ in node.next_functions:
            if source is not None:
                uses[source] = uses.get(source, 0) + 1
                todo.append(source)
    return uses


@torch.no_grad()
def _fold(layer: nn.Module, norm: _BatchNorm) -> None:
    gamma, beta = (1.0, 0.0) if norm.weight is None else (norm.weight.double(), norm.bias.double())
    factor = gamma / (norm.running_var.double() + norm.eps).sqrt()
    bias = 0.0 if layer.bias is None else layer.bias.double()
    bias = ((bias - norm.running_mean.double()) * factor + beta).to(layer.weight.dtype)
    layer.weight.copy_(layer.weight.double() * factor.view(-1, *[1] * (layer.weight.dim() - 1)))
    if layer.bias is None:
        layer.bias = nn.Parameter(bias)
    else:
        layer.bias.copy_(bias)


def _rest(norm: _BatchNorm) -> nn.Module:
    """What a BatchNorm layer does beside normalising: timm has layers with an activation in them."""
    rest = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part is not None]
    return nn.Sequential(*rest) if rest else nn.Identity()


@torch.no_grad()
def estimate(model: nn.Module, x: Tensor) -> None:
    """BatchNorm's running statistics anew: the mean of those of parts of x. In evaluation mode then.

    One sample alone has none: they stay as they are.
    """
    norms = [
        module for module in model.eval().modules() if isinstance(module, _BatchNorm) and module.track_running_stats
    ]
    if len(x) == 1:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for part in x.chunk(-(-len(x) // PART)) if norms else ():  # none of them is a single sample
        model(part)
    model.eval()
