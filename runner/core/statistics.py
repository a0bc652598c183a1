"""The running statistics of normalisation layers: frozen, and the same in all processes."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from runner.core import distributed


@contextmanager
def frozen(norms: list[nn.Module]) -> Iterator[None]:
    """Inside, these layers leave their running statistics alone, and normalise by the batch as in training."""
    before = [norm.track_running_stats for norm in norms]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, tracked in zip(norms, before, strict=True):
            norm.track_running_stats = tracked


def average(buffers: Iterable[Tensor]) -> None:
    """With several processes, the mean of their floating-point buffers, so that all evaluate and save the same."""
    if distributed.world > 1:
        for buffer in buffers:
            if buffer.is_floating_point():
                distributed.sum_(buffer).div_(distributed.world)
