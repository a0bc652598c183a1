"""Partitions of one small set of classes, for the tests of each kind."""

import numpy as np

from runner.federated.partition import Partition, make

CLASSES = 5

Y = np.random.default_rng(0).integers(0, CLASSES, 2000)

DOMAIN = np.random.default_rng(1).choice([3, 7], 2000)  # ids need not be consecutive

OPTIONS = dict(alpha=0.5, labels=2, domain=DOMAIN, minimum=5, classes=CLASSES)


def made(kind, y=Y, clients=10, seed=0, **changed) -> Partition:
    return make(kind, y, clients, seed, **OPTIONS | changed)


def table(p: Partition, y=Y, classes=CLASSES) -> np.ndarray:
    """(classes, clients) counts, by a loop."""
    counts = np.zeros((classes, p.clients), dtype=int)
    for label, client in zip(y, p.owner):
        if client >= 0:
            counts[label, client] += 1
    return counts
