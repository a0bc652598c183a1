"""Batches of different sizes side by side: samples that only fill up a batch, and what must not see them.

`Batch.mask` is False for such a sample. Losses are per sample and do not mind; what takes a mean over the batch must
leave it out, and says so with `padding = True` (risks, hooks with a penalty). Batch normalisation does it here.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

KNOWN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def reason(norms: Iterable[nn.Module]) -> str | None:
    """Why these normalisation layers cannot leave samples out, or None where they can."""
    for norm in norms:
        if type(norm) not in KNOWN or norm.momentum is None:
            return f"{type(norm).__name__} cannot leave out the samples that fill up a smaller batch"
    return None


@contextmanager
def left_out(norms: Iterable[nn.Module], mask: Tensor | None) -> Iterator[None]:
    """Inside, batch normalisation takes its statistics over the samples where mask (B,) is True alone."""
    norms = [] if mask is None else list(norms)
    for norm in norms:
        norm.forward = partial(_normalise, norm, mask)
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _normalise(norm: nn.Module, mask: Tensor, x: Tensor) -> Tensor:
    """torch's batch normalisation in training, (B, C, ...), with the mean over n true samples instead of B:

    mean and (biased) variance over true samples and positions; the running variance gets the unbiased one.
    """
    if not norm.training:
        return type(norm).forward(norm, x)
    wide = x if x.dtype == torch.float64 else x.float()
    axes = [0, *range(2, x.dim())]
    shape = [1, -1, *[1] * (x.dim() - 2)]
    true = mask.view(-1, *[1] * (x.dim() - 1)).to(wide.dtype)
    count = true.sum() * (x.numel() // (x.shape[0] * x.shape[1]))
    mean = (wide * true).sum(axes) / count
    centred = wide - mean.view(shape)
    variance = (centred.square() * true).sum(axes) / count
    if norm.track_running_stats:
        with torch.no_grad():
            norm.num_batches_tracked.add_(1)
            unbiased = variance * (count / (count - 1))
            for running, value in ((norm.running_mean, mean), (norm.running_var, unbiased)):
                running.mul_(1 - norm.momentum).add_(value.to(running.dtype), alpha=norm.momentum)
    y = centred * torch.rsqrt(variance + norm.eps).view(shape)
    if norm.affine:
        y = y * norm.weight.view(shape) + norm.bias.view(shape)
    return y.to(x.dtype)
