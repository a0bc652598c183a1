"""What the tests of balances are made of."""

import torch

from runner.dataset.digits import Digits
from runner.hook import Hook


class Environments(Digits):
    """Digits of three domains, 2, 5 and 9; the last one is rare."""

    def load(self):
        found = super().load()
        for split in found:
            place = torch.arange(len(split))
            split.domain = torch.where(place % 20 == 7, 9, torch.where(place % 3 == 1, 5, 2))
        return found


class Pull(Hook):
    """The weight of the classifier towards one: a penalty that is often against the risk."""

    padding = True

    def __init__(self, weight: float = 0.5):
        self.weight = weight

    def loss(self, run, out, batch):
        last = [value for value in run.model.parameters() if value.dim() == 2][-1]
        return self.weight * (last - 1).square().mean()


SMALL = ["dataset.subset=120", "train.batch_size=16", "train.epochs=3", "model.hidden=[12]", "optim.lr=0.05"]
OF = {
    "tasks": ["dataset=multi_mnist", "dataset.source=digits"],
    "domains": ["dataset._target_=tests.balance.made.Environments"],
    "terms": ["+hook.pull._target_=tests.balance.made.Pull", "+hook.pull.weight=0.5"],
}


def words(of: str, option: str = "upgrad") -> list[str]:
    return [*OF[of], f"balance={option}", f"balance.of={of}"]
