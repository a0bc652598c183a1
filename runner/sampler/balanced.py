"""As many samples of every group in every batch."""

import torch
from torch import Tensor

from runner.sampler import Grouped


class Balanced(Grouped):
    """Every group has the same share of every batch: class-balanced sampling (Kang et al., ICLR 2020, arXiv:1910.09217)
    without the noise of drawing the classes, with by=domain what DomainBed makes of its environments (Gulrajani &
    Lopez-Paz, ICLR 2021, arXiv:2007.01434), with by=group sampling that balances groups (RWG: Idrissi et al., CLeaR
    2022, arXiv:2110.14503).

    Samples stand group after group in turn, g_0 g_1 ... g_{E-1} g_0 ..., so a batch has B / E of each, or one more of
    some where E does not divide B, and so have shares of processes and micro-batches. The samples of a group come in
    permutations of it, end to end over all epochs: a group smaller than the others repeats, none is drawn with
    replacement. An epoch has as many samples as the training set, so not all of a large group.

    Parameters
    ----------
    by : class, domain or group. Default class.

    Raises
    ------
    ValueError : the data set has no such groups, or bags.
    """

    whole = False

    def order(self, epoch: int) -> Tensor:
        count, begin = len(self.members), epoch * self.length
        order = torch.empty(self.length, dtype=torch.int64)
        for group in range(count):
            first = (group - begin) % count  # where in this epoch the group comes first
            own = order[first::count]
            low = (begin + first) // count
            own.copy_(self.stream(group, low, low + len(own)))
        return order

    def notices(self) -> list[str]:
        if len(self.members) == 1:
            return [f"sampler=balanced: all samples are of one {self.by}, there is nothing to balance"]
        return []
