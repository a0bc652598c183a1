"""Gradual pruning by magnitude."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from runner.core.batch import Batch
from runner.core.reach import Begin
from runner.core.schema import Count, Fraction
from runner.hook import Hook
from runner.quantization import opening
from runner.transform import Transform
from runner.transform.maps import effective, layers, put


class Masked(nn.Module):
    """w where the mask is True, else 0."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.register_buffer("mask", torch.ones_like(weight, dtype=torch.bool))

    def forward(self, w: Tensor) -> Tensor:
        return w * self.mask


class Magnitude(Transform, Hook):
    """Gradual magnitude pruning (Zhu & Gupta 2017, arXiv:1710.01878, equation 1). In every Linear and Conv2d the share

        s(t) = s_f + (s_i - s_f) (1 - (t - t_0) / (t_1 - t_0))^3        t_0 <= t <= t_1

    of the weights is 0, those of smallest magnitude, as chosen anew before step t_0, every `every` steps from there and
    before step t_1. As in the paper masked weights get no gradient and keep their value, with which they can come back
    while masks still change; but momentum goes on moving them and decay shrinks them. Biases are not pruned. Quantizers
    see the masked weights. The present share is in every epoch's line as `sparsity`.

    Parameters
    ----------
    initial, final : s_i and s_f, of 0 to below 1. Defaults 0 and 0.9.
    begin, end : shares of the run's steps that give t_0 and t_1. Defaults 0 and 0.5.
    every : steps between masks. Default 100, the paper's smallest.
    skip : list of str, default []
        Shell patterns for names of layers that stay dense: `[head, body.0]`.

    Raises
    ------
    ValueError
        end before begin; from `prepare`, a pattern that nothing fits, or no layer left; in a federation.
    """

    when = "adapt"

    def __init__(
        self,
        initial: Fraction = 0.0,
        final: Fraction = 0.9,
        begin: Fraction = 0.0,
        end: Fraction = 0.5,
        every: Count = 100,
        skip: list[str] = [],  # noqa: B006 (only read)
    ):
        if end < begin:
            raise ValueError(f"end={end:g} is before begin={begin:g}")
        self.initial, self.final, self.begin, self.end = initial, final, begin, end
        self.every, self.skip = every, skip

    def prepare(self, model: nn.Module, batch: Batch) -> nn.Module:
        for layer in layers(model, self.skip).values():
            put(layer, Masked(layer.weight.detach()))
        return model

    def begins(self, steps: int, steps_per_epoch: int) -> Iterable[Begin]:
        yield Begin(f"begin={self.begin:g}", opening(self.begin, steps), "nothing is pruned")
        yield Begin(f"end={self.end:g}", opening(self.end, steps), f"sparsity stays below final={self.final:g}")

    def notices(self, run) -> list[str]:
        last = opening(self.end, run.steps)
        if not 0 < last < run.steps:
            return []
        return [
            f"transform=magnitude changes masks until step {last:,} of {run.steps:,}: the best epoch by validation may "
            "be one that is less sparse"
        ]

    def start(self, run) -> None:
        if "federated" in run.hooks.named:
            raise ValueError("transform=magnitude would have other masks in every client: set federated=none")

    def share(self, step: int, steps: int) -> float | None:
        """s(t) where masks are chosen before this step of so many, else None."""
        first, last = opening(self.begin, steps), opening(self.end, steps)
        if not first <= step <= last or (step != last and (step - first) % self.every):
            return None
        done = 1.0 if step == last else (step - first) / (last - first)
        return self.final + (self.initial - self.final) * (1 - done) ** 3

    def before(self, run) -> None:
        share = self.share(run.count, run.steps)
        if share is None and "sparsity" in run.report:
            return
        found = [(layer, place, change) for layer in run.model.modules() for place, change in masks(layer)]
        if share is not None:
            for layer, place, change in found:
                change.mask.copy_(largest(effective(layer, place).detach(), share))
        zeros, every = (sum(counts) for counts in zip(*((int((~c.mask).sum()), c.mask.numel()) for *_, c in found)))
        run.report = {**run.report, "sparsity": zeros / every}


def masks(layer: nn.Module) -> list[tuple[int, Masked]]:
    return [(place, change) for place, change in enumerate(getattr(layer, "maps", ())) if isinstance(change, Masked)]


def largest(weight: Tensor, share: float) -> Tensor:
    """True but for the smallest round(share * N) magnitudes; of equal ones those that come first go first."""
    order = weight.abs().flatten().argsort(stable=True)
    mask = torch.ones_like(order, dtype=torch.bool)
    mask[order[: round(share * len(order))]] = False
    return mask.view(weight.shape)
