"""P classes, K samples of each."""

import torch
from torch import Tensor

from runner.core import keyed
from runner.core.schema import Count
from runner.sampler import Grouped


class Classes(Grouped):
    """P x K batches for losses of pairs (Hermans et al. 2017, arXiv:1703.07737): P classes, K samples each.

    In every epoch the classes come in permutations of them, P of one at a time, what is left over of it not used; the
    samples of a class in permutations of it, end to end, so a class with fewer than K samples repeats within a batch. A
    batch stands interleaved, c_1 ... c_P c_1 ... c_P ..., so that every 2 P samples in a row have pairs of all its
    classes: shares of processes, micro-batches and `sharpness.m` must be multiples of that. An epoch has as many whole
    batches as fit into the training set.

    Parameters
    ----------
    classes : P. Default 8. per_class : K, at least 2. Default 4. `train.batch_size` must be P K.

    Raises
    ------
    ValueError : other targets than class ids, fewer classes, another batch size, or bags.
    """

    whole = False

    def __init__(self, classes: Count = 8, per_class: Count = 4):
        super().__init__("class")
        if classes < 2 or per_class < 2:
            raise ValueError(f"classes={classes}, per_class={per_class}: pairs need two of each at least")
        self.classes, self.per_class, self.block = classes, per_class, 2 * classes

    def prepare(self, split, batch_size: int, seed: int, bag: int = 1) -> None:
        super().prepare(split, batch_size, seed, bag)
        if len(self.members) < self.classes:
            raise ValueError(f"classes={self.classes}, and the training set has samples of {len(self.members)}")
        if batch_size != self.classes * self.per_class:
            raise ValueError(
                f"train.batch_size={batch_size} is not classes x per_class = {self.classes} x {self.per_class} = "
                f"{self.classes * self.per_class}"
            )
        self.length = len(split) // batch_size * batch_size

    def order(self, epoch: int) -> Tensor:
        a_turn, found = len(self.members) // self.classes, []
        taken = [0] * len(self.members)
        for step in range(self.length // self.batch_size):
            turn, part = divmod(step, a_turn)
            chosen = keyed.generator(self.seed, "classes", epoch, turn).permutation(len(self.members))
            rows = []
            for label in chosen[part * self.classes : (part + 1) * self.classes]:
                rows.append(self.stream(int(label), taken[label], taken[label] + self.per_class, epoch))
                taken[label] += self.per_class
            found.append(torch.stack(rows, 1).flatten())
        return torch.cat(found)

    def notices(self) -> list[str]:
        short = sum(len(own) < self.per_class for own in self.members)
        if short:
            return [
                f"sampler=classes: {short} class(es) have fewer than {self.per_class} samples, which repeat in a batch"
            ]
        return []
