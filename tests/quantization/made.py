"""Quantized networks and the points at which quantizers are asked, for the tests of this room."""

from importlib import import_module

import numpy as np
import torch
import yaml
from torch import nn

from runner.command.build import build
from runner.command.listing import conf_dir
from tests.tiny import SMALL

DEEP = [*SMALL[:-1], "model.hidden=[16,16]"]  # so that something lies between the first and the last layer


def option(name: str, **settings):
    node = yaml.safe_load((conf_dir() / "quantization" / f"{name}.yaml").read_text())
    return build(node | settings, "quantization")


def reference(name):
    return import_module(f"tests.reference.quantization_{name}")


def rounded(quantizer, x):
    """x on the quantizer's grid."""
    levels, step = quantizer(x)
    return levels * step


def quantized(model: nn.Module) -> dict:
    """Its quantized layers by name."""
    return {name: layer for name, layer in model.named_modules() if hasattr(layer, "codes") and hasattr(layer, "bias")}


POINTS = np.array([-1.3, -0.9, -0.75, -0.31, -0.06, 0.0, 0.02, 0.15, 0.4, 0.62, 0.81, 2.5])

UPSTREAM = np.array([0.5, -1.0, 2.0, 0.3, -0.7, 1.1, 0.9, -2.0, 1.5, 0.25, -0.6, 0.8])


def grads(layer, x, upstream):
    """Values on the layer's grid and the gradients of sum upstream * value by x and the layer's parameters."""
    x = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    y = rounded(layer, x)
    return y.detach(), *torch.autograd.grad(y, (x, *layer.parameters()), torch.tensor(upstream, dtype=torch.float64))
