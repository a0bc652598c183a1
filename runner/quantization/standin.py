"""What ranges and scales are made of where a tensor is all zeros, as the last layer of many networks starts.

A step of zero would never be left again: what moves by the first update lies beyond every grid. So of zeros the range
is that of what could stand there: weights as torch draws them for the layer's fan-in, uniform within 1 / sqrt(fan_in),
and inputs uniform with variance 1. Zeros are a level of every grid with two bits or more, so that the layer computes
what it did, and its step is as large as a layer's that was drawn.
"""

import math

import torch
from torch import Tensor


def bound(w: Tensor) -> float:
    """Of the weights that torch would draw for the layer whose weights are w (out, in, ...)."""
    return w[0].numel() ** -0.5


def filled(rows: Tensor, edge: float, signed: bool = True) -> Tensor:
    """The rows (R, N), of which those of zeros alone have evenly spaced values from -edge, or 0, to edge."""
    return torch.where(rows.any(1, keepdim=True), rows, torch.linspace(-edge * signed, edge, rows.shape[1]).to(rows))


def inputs(rows: Tensor, signed: bool) -> Tensor:
    """The same of a layer's inputs."""
    return filled(rows, math.sqrt(3), signed)


def size(w: Tensor, measured: Tensor, share: float = 1.0) -> Tensor:
    """A size (...) measured of w, such as mean|w|; where that is 0, `share` of `bound`."""
    return torch.where(measured == 0, share * bound(w), measured)  # what is not a number stays it
