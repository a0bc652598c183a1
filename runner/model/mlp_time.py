"""A multilayer perceptron that knows the time: for losses that ask a network about noisy inputs."""

import math
from math import prod

import torch
from torch import Tensor, nn

from runner.core.batch import Output
from runner.core.schema import Count


class MlpTime(nn.Module):
    """h_0 = W_0 x + V e(t); h_i = h_{i-1} + W'_i SiLU(W_i SiLU(h_{i-1}) + V_i e(t)); outputs W SiLU(h_L), as many as an
    input has numbers. The features are h_L.

    e(t) are sines and cosines of 1000 t at 32 frequencies from 1 to 1e-4, evenly spaced in the logarithm (Vaswani et
    al. 2017, arXiv:1706.03762, section 3.5, as Ho et al. 2020, arXiv:2006.11239, tell the time). W'_i and W start at 0,
    so an untrained network gives 0. It is this project's, for small data.

    Parameters
    ----------
    shape : of an input. width : of h. Default 256. depth : L. Default 3.

    `forward` takes t, (B,) in [0, 1]; without it t is 0.
    """

    def __init__(self, shape: tuple[int, ...], width: Count = 256, depth: Count = 3):
        super().__init__()
        size = prod(shape)
        self.enter, self.leave = nn.Linear(size, width), nn.Linear(width, size)
        self.told = nn.ModuleList(nn.Linear(64, width) for _ in range(depth + 1))
        self.inner = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.outer = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        for layer in (self.leave, *self.outer):
            nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
        self.act = nn.SiLU()

    def forward(self, x: Tensor, t: Tensor | None = None) -> Output:
        x = x.flatten(1)
        t = x.new_zeros(len(x)) if t is None else t
        rates = torch.exp(torch.arange(32, device=x.device, dtype=x.dtype) * (-math.log(1e4) / 31))
        angle = 1000 * t.unsqueeze(1) * rates
        e = torch.cat([angle.sin(), angle.cos()], 1)
        h = self.enter(x) + self.told[0](e)
        for told, inner, outer in zip(self.told[1:], self.inner, self.outer, strict=True):
            h = h + outer(self.act(inner(self.act(h)) + told(e)))
        return Output(self.leave(self.act(h)), h)
