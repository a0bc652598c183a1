"""Samplers: which training samples an epoch visits, in which order, and what else a step knows of them."""

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from runner.core import keyed

if TYPE_CHECKING:
    from runner.dataset import Split

By = Literal["class", "domain", "group"]


class Sampler:
    """Base of every sampler, and `sampler=shuffle`: every epoch visits every sample once, in an order of its own.

    An epoch is `length` samples in turn, of which a step takes the next `batch_size`: a process its contiguous share,
    an accumulated pass its contiguous micro-batch, `sharpness.m` its contiguous part. What is to be together stands
    together, and `block` says of how many that is so: other batch sizes, shares and parts are refused.

    The order is a function of (seed, epoch) alone, so there is nothing to save. One that goes by how training goes is a
    `runner.hook.Hook` too: it looks in `step`, and its state is in the checkpoint with the other hooks'. What it has
    seen by the end of an epoch decides the next one: within an epoch the order must stay, as a run that goes on asks
    for it again.

    Attributes
    ----------
    whole : an epoch visits every sample exactly once. Where not, a sample that comes again in an epoch is augmented
        anew, bags are refused, and so are federations, whose clients visit what is their own.
    block : samples in a row that only mean something together. Default 1: none.
    length : samples of an epoch, the same for all.
    """

    whole: bool = True
    block: int = 1
    length: int

    def prepare(self, split: "Split", batch_size: int, seed: int, bag: int = 1) -> None:
        """Once, before the first epoch. bag : so many samples in a row share their label and are visited so.

        Raises ValueError, one line, where it cannot sample this split so.
        """
        if bag > 1 and not self.whole:
            raise ValueError("it takes bags apart, of which only the mean label is known: use sampler=shuffle")
        self.split, self.batch_size, self.seed, self.bag = split, batch_size, seed, bag
        self.length = len(split) // bag * bag

    def order(self, epoch: int) -> Tensor:
        """(length,) int64, the samples of an epoch in turn, on the CPU."""
        bags = torch.from_numpy(keyed.generator(self.seed, "order", epoch).permutation(self.length // self.bag))
        return (bags.unsqueeze(1) * self.bag + torch.arange(self.bag)).flatten()

    def about(self, epoch: int, step: int, rows: Tensor) -> dict[str, Tensor]:
        """What the sampler knows of the samples `rows` (B,) of a step: the fields `weight`, `domain` or `y` of the
        batch, and under any other name entries of `Batch.more`; all (B, ...), on the device of `rows`."""
        return {}

    def notices(self) -> list[str]:
        """Lines for the user: what it does not do to this split."""
        return []


class Grouped(Sampler):
    """Base of samplers that go by groups of samples.

    Parameters
    ----------
    by : `class`: the label, damaged as it may be; `domain`: the data set's environment; `group`: both together, every
        pair that occurs. Default class.

    `members` has the samples of each group, (n_g,) int64; groups are numbered in the order of class and domain.
    """

    def __init__(self, by: By = "class"):
        self.by = by

    def prepare(self, split: "Split", batch_size: int, seed: int, bag: int = 1) -> None:
        super().prepare(split, batch_size, seed, bag)
        self.group = groups(split, self.by).cpu()
        self.members = [(self.group == g).nonzero().flatten() for g in range(int(self.group.max()) + 1)]

    def stream(self, group: int, low: int, high: int, *keys: int) -> Tensor:
        """The samples at places low to high of a group's endless stream: permutations of the group, end to end. keys :
        streams of other keys are other streams."""
        own, found = self.members[group], []
        for turn in range(low // len(own), -(-high // len(own))):
            order = keyed.generator(self.seed, "stream", group, turn, *keys).permutation(len(own))
            found.append(own[torch.from_numpy(order)])
        start = low - low // len(own) * len(own)
        return torch.cat(found)[start : start + high - low] if found else own[:0]


def groups(split: "Split", by: By) -> Tensor:
    """(N,) int64: which group a sample is in, from 0, without gaps. Raises ValueError where the split has none such."""
    keys = []
    if by in ("class", "group"):
        if split.y.dim() > 1 or split.y.is_floating_point():
            raise ValueError(f"by={by} goes by one class id a sample, and this data set has other targets")
        keys.append(split.y)
    if by in ("domain", "group"):
        if split.domain is None:
            raise ValueError(f"by={by} goes by domains, and this data set has none")
        keys.append(split.domain)
    return torch.stack(keys, 1).unique(dim=0, return_inverse=True)[1]


def turns(order: Tensor) -> Tensor:
    """(M,) int64: how often the sample at each place of an order (M,) has come before it."""
    by_sample = order.argsort(stable=True)
    ranks = torch.arange(len(order))
    _, counts = order[by_sample].unique_consecutive(return_counts=True)
    first = (counts.cumsum(0) - counts).repeat_interleave(counts)
    return torch.empty_like(order).scatter_(0, by_sample, ranks - first)
