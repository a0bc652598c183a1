"""Risks: how per-sample losses become the one number to minimise."""

import math
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from runner.core import distributed
from runner.core.batch import Batch
from runner.core.reach import Begin


class Risk(nn.Module):
    """Base of every risk: (B,) losses -> a scalar. `batch.weight`, where set, multiplies the losses.

    `forward` has no side effect. State is in buffers, which the checkpoint holds, and only `observe` changes it. A
    constructor may ask by name for what the data set knows: `classes`, `samples`, `class_counts`.

    Attributes
    ----------
    padding : bool
        Whether it leaves out the samples for which `batch.mask`, where set, is False. Default False: clients of
        different sizes are then not trained side by side.
    ranks : bool
        Whether it compares the losses of a batch with each other. Default False. True: a run in which there is nothing
        to compare says so.
    """

    padding: bool = False
    ranks: bool = False

    def begins(self, steps: int, steps_per_epoch: int) -> Iterable[Begin]:
        """What of it waits for a step, in a run of so many: see `runner.core.reach`."""
        return ()

    def forward(self, losses: Tensor, batch: Batch) -> Tensor:
        raise NotImplementedError

    def notices(self, run) -> list[str]:
        """What of it has no effect, or another one than expected, in this run, one line each; run: the Trainer."""
        if self.ranks and run.loss.alike:
            return ["risk: the loss has one value for a whole batch, so that this risk is its mean"]
        if self.ranks and one_pass(run) == 1:
            return ["risk: a forward pass sees one sample, so that this risk is the mean"]
        return []

    def observe(self, losses: Tensor, batch: Batch, step: int, steps: int) -> None:
        """Called once a step with the detached losses at w, and not when the step was skipped; with `sharpness.m` once
        for every m samples. step: updates so far, this one included; steps: those of the whole run."""


def one_pass(run) -> int:
    """Samples of a whole batch that a forward pass of this run sees; run: the Trainer."""
    local = math.ceil(run.train.batch_size / distributed.world)
    return math.ceil(min(run.sharpness.m or local, local) / run.train.accumulate)


def units(losses: Tensor, batch: Batch, dataset) -> tuple[Tensor, Batch]:
    """Losses (B, *places) and their batch as a risk takes them, by `dataset.per`: where targets have no places, as they
    are. target: every place is a sample, (B * places,), with its sample's weight, index and domain, masked where it
    does not count. sample: the mean over the places of a sample that count, (B,), 0 where none does."""
    if not dataset.places:
        return losses, batch
    valid = batch.more.get("valid")
    if dataset.per == "sample":
        rows = losses.flatten(1)
        if valid is None:
            return rows.mean(1), batch
        valid = valid.flatten(1)
        return rows.where(valid, 0.0).sum(1) / valid.sum(1).clamp(min=1), batch
    count = losses[0].numel()

    def spread(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.repeat_interleave(count, 0)

    mask = spread(batch.mask)
    if valid is not None:
        mask = valid.flatten() if mask is None else valid.flatten() & mask
    own = {name: spread(getattr(batch, name)) for name in ("index", "domain", "weight")}
    return losses.flatten(), replace(batch, **own, mask=mask)


def attended(losses: Tensor, batch: Batch) -> Tensor:
    """The losses, of which those that are not below the batch's `limit`, where a sharpness method has put one there,
    have no gradient."""
    if "limit" not in batch.more:
        return losses
    limit = batch.more["limit"]
    rest = losses.detach()
    return torch.where(rest < limit.reshape(limit.shape + (1,) * (losses.dim() - 1)), losses, rest)
