"""Risks: how per-sample losses become the one number to minimise."""

import math
from collections.abc import Iterable

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


def attended(losses: Tensor, batch: Batch) -> Tensor:
    """The losses, of which those that are not below the batch's `limit`, where a sharpness method has put one there,
    have no gradient."""
    if "limit" not in batch.more:
        return losses
    limit = batch.more["limit"]
    rest = losses.detach()
    return torch.where(rest < limit.reshape(limit.shape + (1,) * (losses.dim() - 1)), losses, rest)
