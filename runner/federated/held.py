"""Which client a validation sample belongs to."""

import numpy as np

from runner.dataset import Split
from runner.federated.partition import Partition


def deal(partition: Partition, train: Split, val: Split) -> np.ndarray:
    """(M,) the client of every validation sample: those of a class (and domain) are dealt, in the order of the split,
    in proportion to the clients' own training samples of it. Samples of a class that no client has get -1."""

    classes = 1 + max(int(split.y.max()) for split in (train, val))

    def kinds(split: Split) -> np.ndarray:
        return split.y.numpy() if split.domain is None else split.y.numpy() + classes * split.domain.numpy()

    of_train, of_val = kinds(train), kinds(val)
    owner = np.full(len(of_val), -1)
    for kind in np.unique(of_val):
        where = np.flatnonzero(of_val == kind)
        owners = partition.owner[of_train == kind]
        counts = np.bincount(owners[owners >= 0], minlength=partition.clients)
        if counts.sum():
            borders = np.round(np.cumsum(counts) / counts.sum() * len(where)).astype(int)
            owner[where] = np.searchsorted(borders, np.arange(len(where)), side="right")
    return owner
