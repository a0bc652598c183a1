"""Partitions with Dirichlet shares against the published loops and their distribution."""

import numpy as np
import pytest
from scipy import stats

from runner.core import keyed
from runner.federated import partition
from runner.federated.partition import KINDS
from tests.federated.dealt import CLASSES, OPTIONS, Y, made, table

# ---- dirichlet


def by_loops(y, clients, alpha, minimum, classes, draw):
    """The public code of Li et al. 2022 as a description: (classes, clients) counts and how often all was redrawn."""
    sizes = [sum(1 for value in y if value == label) for label in range(classes)]
    smallest, tries = -1, 0
    while smallest < minimum:
        tries += 1
        held = [0] * clients
        counts = []
        for label in range(classes):
            of_class = sizes[label]
            share = list(draw.dirichlet([alpha] * clients))
            for client in range(clients):
                if not held[client] < len(y) / clients:
                    share[client] = 0.0
            whole, running, start, row = np.sum(share), 0.0, 0, []  # numpy's sum, to the last bit
            for client in range(clients):
                running += share[client] / whole
                end = of_class if client == clients - 1 else int(running * of_class)
                row.append(end - start)
                start = end
            counts.append(row)
            held = [a + b for a, b in zip(held, row)]
        smallest = min(held)
    return np.array(counts), tries


@pytest.mark.parametrize("clients, alpha, minimum", [(10, 0.5, 10), (4, 0.05, 60), (30, 0.3, 6)])
def test_dirichlet_is_the_published_loop(clients, alpha, minimum):
    y, tried = Y[:600], 0
    for seed in range(5):
        p = made("dirichlet", y=y, clients=clients, seed=seed, alpha=alpha, minimum=minimum)
        expected, tries = by_loops(y.tolist(), clients, alpha, minimum, CLASSES, keyed.generator(seed, "partition"))
        assert np.array_equal(table(p, y), expected)
        assert expected.sum(0).max() <= len(y) / clients + np.bincount(y).max()  # full clients get nothing more
        tried += tries
    assert tried > 5 or alpha == 0.5


def kinds(kind, draw, **changed):
    """A kind's counts, as drawn: (groups, clients)."""
    return KINDS[kind](draw=draw, **OPTIONS | dict(y=Y, clients=10) | changed)[1]


def test_shares_of_a_class_are_dirichlet():
    # while nobody is full, one client's share of a class ~ Beta(alpha, (n - 1) alpha)
    y, draw = np.repeat([0, 1], 100_000), np.random.default_rng(0)
    counts = [kinds("dirichlet", draw, y=y, clients=4, alpha=2.0, classes=2, minimum=0)[0] for _ in range(300)]
    shares = np.array(counts) / 100_000
    for client in range(4):
        assert stats.kstest(shares[:, client], stats.beta(2, 6).cdf).pvalue > 1e-4


@pytest.mark.parametrize("kind", ["dirichlet", "dirichlet_clients", "quantity"])
def test_a_large_alpha_tends_to_iid(kind):
    counts = kinds(kind, np.random.default_rng(0), alpha=1e12)
    expected = counts.sum(1, keepdims=True) / 10
    if kind == "dirichlet_clients":
        assert stats.chi2_contingency(counts).pvalue > 1e-4
    else:
        assert np.abs(counts - expected).max() <= 1


def test_a_tiny_alpha_gives_a_client_few_classes():
    for seed in range(5):
        draw = np.random.default_rng(seed)
        counts = kinds("dirichlet", draw, alpha=1e-9, clients=5, minimum=1)
        assert ((counts > 1).sum(1) == 1).all()  # all of a class at one client; one sample may be rounding
        counts = kinds("dirichlet_clients", draw, alpha=1e-9, clients=100)
        assert (counts.sum(0) == 20).all()
        assert (counts > 0).sum(0).mean() < 2  # a second class only where too many clients wanted the first


def test_minimum_is_asked_of_draws(monkeypatch):
    for kind in ("dirichlet", "quantity"):
        sizes = [made(kind, seed=seed, alpha=0.1, clients=5, minimum=40).sizes for seed in range(5)]
        assert np.min(sizes) >= 40
    monkeypatch.setattr(partition, "DRAWS", 500)
    for kind, tries in (("dirichlet", 100), ("quantity", 500)):
        with pytest.raises(ValueError) as error:
            made(kind, alpha=0.01, clients=100, minimum=19)
        assert f"in {tries} partitions drawn the smallest client had " in str(error.value)
        words = "minimum=19: raise federated.alpha (now 0.01), or lower federated.clients (now 100)"
        assert words in str(error.value)


def test_the_smallest_size_seen_is_named(monkeypatch):
    monkeypatch.setattr(partition, "DRAWS", 30)
    draw = keyed.generator(5, "partition")
    best = max(
        np.diff([0, *(np.cumsum(draw.dirichlet([0.3] * 4)) * 2000).astype(int)[:-1], 2000]).min() for _ in range(30)
    )
    with pytest.raises(ValueError, match=f"the smallest client had {best} samples at most"):
        made("quantity", seed=5, clients=4, alpha=0.3, minimum=499)


def test_quantity():
    p = made("quantity", clients=6, minimum=20)
    assert p.sizes.min() >= 20
    assert p.sizes.max() > 2 * 2000 / 6
    expected = [[size * p.sizes[i] / 2000 for i in range(6)] for size in np.bincount(Y)]  # samples are drawn blindly
    assert stats.chisquare(table(p).ravel(), np.ravel(expected), ddof=9).pvalue > 1e-4
    draw = np.random.default_rng(0)
    shares = np.array([kinds("quantity", draw, clients=4, alpha=2.0, minimum=0)[0] for _ in range(500)]) / 2000
    for client in range(4):
        assert stats.kstest(shares[:, client], stats.beta(2, 6).cdf).pvalue > 1e-4


# ---- dirichlet_clients


def test_shares_of_a_client_are_dirichlet():
    # Many clients: nearly all get what they ask for, and the share of class 0 ~ Beta(alpha * p, alpha * (1 - p))
    y = np.repeat([0, 1], [30_000, 10_000])
    counts = kinds("dirichlet_clients", np.random.default_rng(0), y=y, clients=400, alpha=4.0, classes=2)
    assert stats.kstest(counts[0] / 100, stats.beta(3, 1).cdf).statistic < 1.36 / np.sqrt(400)  # its 5 % point


def request_by_request(sizes, clients, alpha, draw):
    """Hsu et al. 2019 by loops, every sample a request of its own: (classes, clients) counts."""
    left, total = list(sizes), sum(sizes)
    counts = np.zeros((len(sizes), clients), dtype=int)
    q = [draw.dirichlet([alpha * size / total for size in sizes]) for _ in range(clients)]
    open_requests = [client for client in range(clients) for _ in range(total // clients)]
    while open_requests:
        available = np.array(left) > 0
        wanted = []
        for client in open_requests:
            p = q[client] * available
            wanted.append((client, draw.choice(len(sizes), p=p / p.sum())))
        open_requests = []
        for i in draw.permutation(len(wanted)):
            client, label = wanted[i]
            if left[label]:
                left[label] -= 1
                counts[label, client] += 1
            else:
                open_requests.append(client)
    return counts


def test_clients_draw_without_replacement():
    sizes, draw = (6, 4, 2), np.random.default_rng(0)
    y = np.repeat(np.arange(3), sizes)
    ours = [kinds("dirichlet_clients", draw, y=y, clients=3, alpha=2.0, classes=3) for _ in range(1500)]
    loops = [request_by_request(sizes, 3, 2.0, draw) for _ in range(1500)]
    # the whole distribution of one client's classes; rare ones are put together
    seen = np.array([[str(counts[:, 0]) for counts in which] for which in (ours, loops)])
    names, cells = np.unique(seen, return_inverse=True)
    cells = np.stack([np.bincount(row, minlength=len(names)) for row in cells.reshape(2, -1)])
    rare = cells.sum(0) < 20
    cells = np.column_stack([cells[:, ~rare], cells[:, rare].sum(1)])[:, : (~rare).sum() + rare.any()]
    assert cells.shape[1] > 8
    assert stats.chi2_contingency(cells).pvalue > 1e-4
    # all clients are alike and all samples are dealt: the mean over seeds is the class histogram
    mean = np.mean(ours, axis=0)
    assert np.abs(mean - np.array(sizes)[:, None] / 3).max() < 5 * np.std(ours, axis=0).max() / np.sqrt(1500)


def test_clients_have_equal_sizes():
    p = made("dirichlet_clients", clients=7, alpha=0.1)
    assert p.sizes.tolist() == [286, 286, 286, 286, 286, 285, 285]
    assert ((table(p) > 0).sum(0) < CLASSES).any()
