"""Noise in the inputs of a federation's clients: no two of them see with the same camera."""

import numpy as np
import torch
from torch import Tensor

from runner.core import keyed


def levels(clients: int, sigma: float) -> np.ndarray:
    """(clients,) standard deviations sigma * i / (n - 1) of the noise of client i = 0 ... n - 1.

    The paper (Li et al. 2022, arXiv:2102.02079) calls its Gau(sigma * i / n) a Gaussian of variance sigma * i / n for
    client i = 1 ... n; its public code takes the above as the standard deviation. Here the code is followed, because
    the paper's numbers come from it: the first client has clean inputs, the last one noise of standard deviation
    sigma. One client alone has clean inputs.
    """
    return sigma * np.arange(clients) / max(clients - 1, 1)


def feature_noise(x: Tensor, client_level: Tensor, scale: Tensor, seed: int, index: Tensor) -> Tensor:
    """x + scale * client_level * n, with n standard normal and a function of (seed, index) alone.

    So a sample has the same noise in every epoch, batch and process, and on every device up to the rounding of log and
    cos there. (The public code of Li et al. draws it anew each time that a sample is read.) Nothing is clipped.

    Parameters
    ----------
    x : (..., *shape), normalised inputs. The leading axes are those of `index`.
    client_level : standard deviations in units of pixels in [0, 1], broadcast to the shape of `index`.
    scale : what one such unit is in x, broadcast to `shape`: 1 / std for the std of pixels in [0, 1].
    index : (...) int64, the samples' numbers.
    """
    shape = x.shape[index.dim() :]
    count = shape.numel()
    u = keyed.uniform(seed, "feature noise", 0, index.flatten(), count + count % 2)
    radius, angle = u.chunk(2, dim=-1)
    radius, angle = (-2 * torch.log1p(-radius)).sqrt(), 2 * torch.pi * angle  # Box and Muller 1958; 1 - u is never 0
    normal = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=-1)[:, :count].view(x.shape)
    level = client_level.expand(index.shape).reshape(*index.shape, *[1] * len(shape))
    return (x + scale * level * normal).to(x.dtype)
