"""Partitions: which client of a federation has which training samples.

A kind says how many samples of which group (a class, a domain, or all samples as one group) every client gets; `deal`
then draws which ones. All randomness comes from `runner.core.keyed.generator(seed, "partition")`.
"""

import inspect
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from runner.core import keyed
from runner.record.clients import picture
from runner.record.files import write_atomic

Kind = Literal["iid", "dirichlet", "dirichlet_clients", "labels", "quantity", "noise", "domain"]

# Dirichlet draws before the smallest client is given up on: about ten seconds. The public code of Li et al. 2022 has no
# limit, and its quantity skew at 100 clients, alpha = 0.5 and 50,000 samples takes 100,000 draws on average.
DRAWS = 400_000


@dataclass
class Partition:
    """Which client has which sample.

    Attributes
    ----------
    kind : see `make`.
    owner : (N,) int64, the client of every sample; -1 where no client has it.
    clients : how many there are, numbered from 0.
    settings : the arguments of `make` on which the owners depend.
    """

    kind: Kind
    owner: np.ndarray
    clients: int
    settings: dict[str, float] = field(default_factory=dict)

    def of(self, client: int) -> np.ndarray:
        """The samples of a client, in ascending order."""
        return np.flatnonzero(self.owner == client)

    @property
    def sizes(self) -> np.ndarray:
        """(clients,) samples of every client."""
        return np.bincount(self.owner[self.owner >= 0], minlength=self.clients)

    def save(self, folder: Path, y: np.ndarray, classes: int | None) -> None:
        """Writes `partition.npz` (kind, owner, clients, the settings and, of class labels, `counts`: (classes, clients)
        samples) and the picture `partition.png`, atomically.

        y, classes : as `make` takes them; the picture shows sizes alone where they are no class labels.
        """
        content, counts = io.BytesIO(), {}
        if labelled(y, classes):
            had = self.owner >= 0
            cells = np.ravel_multi_index((y[had], self.owner[had]), (classes, self.clients))
            counts = {"counts": np.bincount(cells, minlength=classes * self.clients).reshape(classes, self.clients)}
        facts = {"kind": self.kind, "owner": self.owner, "clients": self.clients, **self.settings, **counts}
        np.savez_compressed(content, **facts)
        write_atomic(folder / "partition.npz", content.getvalue())
        picture(folder, folder / "partition.png")


def make(
    kind: Kind,
    y: np.ndarray,
    clients: int,
    seed: int,
    *,
    alpha: float,
    labels: int,
    domain: np.ndarray | None,
    minimum: int,
    classes: int | None,
) -> Partition:
    """Divides N samples among clients. One client gets every sample.

    Parameters
    ----------
    kind : how. N samples, n clients, C classes.
        iid : at random; sizes differ by one at most.
        dirichlet : every class is divided in proportions ~ Dir(alpha) over clients. See `dirichlet`.
        dirichlet_clients : every client draws its classes from proportions ~ Dir(alpha * p). See `dirichlet_clients`.
        labels : every client has samples of `labels` classes. See `fixed_labels`.
        quantity : sizes ~ Dir(alpha) over clients, samples at random (Li et al. 2022, arXiv:2102.02079).
        noise : as iid; `runner.federated.noise` then makes the clients' inputs different.
        domain : clients by the samples' domains. See `by_domain`.
    y : (N,) class ids. Any other targets (multi-hot, numbers) do for iid, quantity, noise and domain.
    alpha : concentration of dirichlet, dirichlet_clients and quantity; the smaller, the more unequal.
    labels : classes of each client, for labels.
    domain : (N,) ids, or None.
    minimum : samples that every client has at least; no client is ever empty.
    classes : C, or None where y holds no class ids.

    Raises ValueError where the kind does not fit the data, and where a client would have fewer than `minimum` samples.
    """
    minimum = max(minimum, 1)
    if len(y) < clients * minimum:
        raise ValueError(
            f"federated.clients={clients} with at least federated.minimum={minimum} samples each need "
            f"{clients * minimum} samples, and there are {len(y)}"
        )
    options = dict(alpha=alpha, labels=labels, domain=domain, minimum=minimum, classes=classes)
    reads = inspect.signature(KINDS[kind]).parameters
    if "classes" in reads and not labelled(y, classes):
        raise ValueError(
            f"federated.partition={kind} divides by class, and the targets of this data set are no class ids: "
            "use iid, quantity, noise or domain"
        )
    draw = keyed.generator(seed, "partition")
    group, counts = KINDS[kind](draw=draw, y=y, clients=clients, **options)
    settings = {name: options[name] for name in ("alpha", "labels", "minimum") if name in reads}
    partition = Partition(kind, deal(group, counts, draw), clients, {"seed": seed, **settings})
    smallest = partition.sizes.argmin()
    if partition.sizes[smallest] < minimum:
        raise ValueError(
            f"federated.partition={kind} leaves client {smallest} with {partition.sizes[smallest]} samples, and "
            f"federated.minimum={minimum}: lower federated.minimum, or federated.clients (now {clients})"
        )
    return partition


def labelled(y: np.ndarray, classes: int | None) -> bool:
    """Whether y holds class ids."""
    return classes is not None and y.ndim == 1 and y.dtype.kind in "iu"


def deal(group: np.ndarray, counts: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """(N,) owners: of group g, client c gets `counts[g, c]` samples, drawn at random; what is left gets -1.

    group : (N,) int64, the group of every sample. counts : (groups, clients) int64.
    """
    rest = np.bincount(group, minlength=len(counts)) - counts.sum(1)
    who = np.append(np.arange(counts.shape[1]), -1)
    order = draw.permutation(len(group))
    order = order[np.argsort(group[order], kind="stable")]  # group after group, each in random order
    owner = np.empty(len(group), dtype=np.int64)
    owner[order] = np.repeat(np.tile(who, len(counts)), np.column_stack([counts, rest]).ravel())
    return owner


def even(total: int, parts: int) -> np.ndarray:
    """(parts,) int64 that sum to `total` and differ by one at most, the larger ones first."""
    return total // parts + (np.arange(parts) < total % parts)


def proportional(total: int, share: np.ndarray) -> np.ndarray:
    """(parts,) int64 that sum to `total`: the cumulated shares, rounded down, are where the parts end."""
    ends = np.zeros(len(share) + 1, dtype=np.int64)
    ends[1:] = np.cumsum(share / share.sum()) * total
    ends[-1] = total
    return ends[1:] - ends[:-1]


def redrawn(attempt: Callable[[], np.ndarray], tries: int, clients: int, minimum: int, alpha: float) -> np.ndarray:
    """The first of `attempt`'s counts (groups, clients) in which every client has `minimum` samples."""
    best = 0
    for _ in range(tries):
        counts = attempt()
        smallest = counts.sum(0).min()
        if smallest >= minimum:
            return counts
        best = max(best, smallest)
    raise ValueError(
        f"in {tries} partitions drawn the smallest client had {best} samples at most, and federated.minimum={minimum}: "
        f"raise federated.alpha (now {alpha:g}), or lower federated.clients (now {clients}) or federated.minimum"
    )


# ---- the kinds: the group of every sample, (N,), and the samples of every group for every client, (groups, clients).
# Which options a kind reads is what its signature names; `classes` there means that y must hold class ids.


def iid(*, draw, y, clients, **_):
    return np.zeros(len(y), dtype=np.int64), even(len(y), clients)[None]


def dirichlet(*, draw, y, clients, alpha, minimum, classes, **_):
    """Yurochkin et al. 2019, arXiv:1905.12022; Wang et al. 2020, arXiv:2002.06440; Li et al. 2022, arXiv:2102.02079.

    For one class after another, proportions over clients ~ Dir(alpha, ..., alpha). As in the public code of all three,
    though not in their definitions, a client that has N / n samples or more already gets nothing of the class, and the
    others' proportions are rescaled to sum to one; and all is drawn anew until the smallest client has `minimum`
    samples (10 in that code). So no client has more than N / n samples and one class; the classes drawn last, the
    highest ids, go to fewer clients than the first; what rounding leaves of a class goes to the last client, full or
    not.
    """
    sizes = np.bincount(y, minlength=classes)

    def attempt():
        counts, held = np.zeros((classes, clients), dtype=np.int64), np.zeros(clients, dtype=np.int64)
        for label in np.flatnonzero(sizes):
            share = np.zeros(clients)
            while not share.any():  # a tiny alpha may give all of a class, in floats, to clients that have enough
                share = draw.dirichlet(np.full(clients, alpha)) * (held < len(y) / clients)
            counts[label] = proportional(sizes[label], share)
            held += counts[label]
        return counts

    return y, redrawn(attempt, DRAWS // classes, clients, minimum, alpha)


def dirichlet_clients(*, draw, y, clients, alpha, classes, **_):
    """Hsu, Qi and Brown 2019, arXiv:1909.06335.

    Every client draws class proportions q ~ Dir(alpha * p), p the class frequencies of all samples, and then its
    samples without replacement, each of a class with probabilities q. Sizes differ by one at most. alpha is the sum of
    the concentrations: code that draws Dir(a, ..., a) over C balanced classes means alpha = C * a.

    All clients draw at once. Where they ask for more samples of a class than there are, chance decides who gets them;
    the class is taken out, q is rescaled, and what is missing is drawn anew. What the paper does then could not be
    found. Public code differs: Flower's FedAvgM baseline lets one client draw after another, so that the last ones get
    what is left, whatever their q; Flower Datasets, after Acar et al. 2021, arXiv:2111.04263, draws one sample at a
    time for a client drawn at random. As in the latter, no client is special, and a large alpha tends to iid for all.
    """
    left = np.bincount(y, minlength=classes)
    prior, missing = left / len(y), even(len(y), clients)
    q, counts = np.zeros((clients, classes)), np.zeros((classes, clients), dtype=np.int64)
    while missing.any():
        q *= left > 0
        asked = np.zeros_like(counts)
        for client in np.flatnonzero(missing):
            if not q[client].any():  # at first, or 0 in floats is left: a part of a Dirichlet, rescaled, is Dirichlet
                q[client, left > 0] = draw.dirichlet(alpha * prior[left > 0])
            asked[:, client] = draw.multinomial(missing[client], q[client] / q[client].sum())
        for label in np.flatnonzero(asked.sum(1) > left):
            asked[label] = draw.multivariate_hypergeometric(asked[label], left[label])
        counts += asked
        left -= asked.sum(1)
        missing -= asked.sum(0)
    return y, counts


def fixed_labels(*, draw, y, clients, labels, classes, **_):
    """Li et al. 2022, arXiv:2102.02079, "#C = k", as in its public code.

    Client i has class i mod C and k - 1 others at random; the samples of a class are divided evenly among the clients
    that have it. Nobody has the samples of a class that was not drawn, which may happen where n < C.
    """
    if labels > classes:
        raise ValueError(f"federated.labels={labels}, and this data set has {classes} classes")
    has = np.zeros((classes, clients), dtype=bool)
    for client in range(clients):
        first = client % classes
        has[first, client] = True
        has[draw.choice(np.delete(np.arange(classes), first), labels - 1, replace=False), client] = True
    has |= clients == 1  # a federation of one is plain training
    counts = np.zeros((classes, clients), dtype=np.int64)
    for label, size in enumerate(np.bincount(y, minlength=classes)):
        if has[label].any():
            counts[label, has[label]] = even(size, has[label].sum())
    return y, counts


def quantity(*, draw, y, clients, alpha, minimum, **_):
    def attempt():
        return proportional(len(y), draw.dirichlet(np.full(clients, alpha)))[None]

    return np.zeros(len(y), dtype=np.int64), redrawn(attempt, DRAWS, clients, minimum, alpha)


def by_domain(*, draw, y, clients, domain, **_):
    """The domains in ascending order, each divided at random and evenly among as many clients as any other."""
    if domain is None:
        raise ValueError("federated.partition=domain needs a data set with domains, and this one has none")
    found, group = np.unique(domain, return_inverse=True)
    each, left_over = divmod(clients, len(found))
    if left_over or not each:
        raise ValueError(
            f"federated.clients={clients} does not fit the {len(found)} domains of this data set: "
            f"federated.partition=domain takes {len(found)}, {2 * len(found)}, {3 * len(found)}, ... clients"
        )
    counts = np.zeros((len(found), clients), dtype=np.int64)
    for number, size in enumerate(np.bincount(group)):
        counts[number, number * each : (number + 1) * each] = even(size, each)
    return group, counts


KINDS = {
    "iid": iid,
    "dirichlet": dirichlet,
    "dirichlet_clients": dirichlet_clients,
    "labels": fixed_labels,
    "quantity": quantity,
    "noise": iid,
    "domain": by_domain,
}
