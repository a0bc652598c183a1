"""One group a batch."""

import torch
from torch import Tensor

from runner.core import keyed
from runner.sampler import Grouped


class Single(Grouped):
    """Every batch is of one group, as Fish (Shi et al., ICLR 2022, arXiv:2104.09937) and streams of domains want it.

    The groups come in random order, every one once before any comes again: a round. The samples of a group come in
    permutations of it, end to end over all epochs, so a group smaller than a batch repeats within it. An epoch has as
    many whole batches as fit into the training set, whatever `train.drop_last` says.

    Parameters
    ----------
    by : class, domain or group. Default class.

    Raises
    ------
    ValueError : the data set has no such groups, or bags.
    """

    whole = False

    def prepare(self, split, batch_size: int, seed: int, bag: int = 1) -> None:
        super().prepare(split, batch_size, seed, bag)
        self.length = len(split) // batch_size * batch_size

    def order(self, epoch: int) -> Tensor:
        steps, count, found = self.length // self.batch_size, len(self.members), []
        for step in range(epoch * steps, (epoch + 1) * steps):
            round_, place = divmod(step, count)
            group = int(keyed.generator(self.seed, "round", round_).permutation(count)[place])
            found.append(self.stream(group, round_ * self.batch_size, (round_ + 1) * self.batch_size))
        return torch.cat(found)
