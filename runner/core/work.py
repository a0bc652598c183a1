"""How much arithmetic a model is."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def uses(model: nn.Module, x: Tensor) -> dict[str, int]:
    """How often one sample uses each weight of every Linear and Conv layer, by the layer's name.

    Those are the positions of the layer's output, over all of its calls: times the number of its weights they are its
    multiply-accumulates. Layers that are not called as modules and products of activations are not seen.
    """
    found: dict[str, int] = {}

    def count(name: str, layer: nn.Module, made: Tensor) -> None:
        channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        found[name] = found.get(name, 0) + made.numel() // channels

    handles = [
        layer.register_forward_hook(lambda layer, _, made, name=name: count(name, layer, made))
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    ]
    try:
        model(x[:1])
    finally:
        for handle in handles:
            handle.remove()
    return found


def multiplications(model: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of one sample in the layers that `uses` sees."""
    return sum(times * model.get_submodule(name).weight.numel() for name, times in uses(model, x).items())
