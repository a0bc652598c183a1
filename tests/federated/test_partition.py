"""Partitions of a training set over clients: rules, hand-computed cases, plain transcriptions, statistics."""

import math
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from scipy import stats

from runner.core import keyed
from runner.federated import partition
from runner.federated.noise import feature_noise, levels
from runner.federated.partition import KINDS, Kind, Partition, deal, make

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


# ---- every kind


@pytest.mark.parametrize("kind", KINDS)
def test_every_sample_has_one_client(kind):
    p = made(kind)
    assert p.kind == kind
    assert p.owner.dtype == np.int64
    parts = [p.of(client) for client in range(10)]
    assert all((np.diff(part) > 0).all() for part in parts)  # ascending, none twice
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(2000))
    assert p.sizes.tolist() == [len(part) for part in parts]
    assert p.sizes.min() >= 5


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides(kind):
    torch.manual_seed(1)
    np.random.seed(1)
    first = made(kind, seed=3)
    torch.manual_seed(2)
    np.random.seed(2)
    assert np.array_equal(made(kind, seed=3).owner, first.owner)
    assert not np.array_equal(made(kind, seed=4).owner, first.owner)


@pytest.mark.parametrize("kind", KINDS)
def test_one_client_has_everything(kind):
    p = made(kind, clients=1, domain=np.zeros(2000, dtype=int))
    assert (p.owner == 0).all()


def test_dealing_takes_any_samples_of_a_group_alike():
    # 2 of the 4 samples of group 0 go to client 0 and 1 to client 1; 1 of group 1 goes to client 1; the rest to nobody
    group, counts = np.array([0, 1, 0, 0, 1, 0]), np.array([[2, 1], [0, 1]])
    seen = {}
    draw = np.random.default_rng(0)
    for _ in range(4800):
        owner = tuple(deal(group, counts, draw))
        seen[owner] = seen.get(owner, 0) + 1
    # 4! / (2! 1! 1!) ways in group 0, 2 in group 1
    assert len(seen) == 24
    for owner in seen:
        assert sorted(owner[i] for i in (0, 2, 3, 5)) == [-1, 0, 0, 1]
        assert sorted(owner[i] for i in (1, 4)) == [-1, 1]
    assert stats.chisquare(list(seen.values())).pvalue > 1e-4


def test_targets_that_are_no_class_ids():
    several, numbers = np.eye(CLASSES, dtype=np.float32)[Y], Y.astype(np.float32)
    for y, classes in ((several, CLASSES), (numbers, None)):
        for kind in ("iid", "quantity", "noise", "domain"):
            assert made(kind, y=y, classes=classes).sizes.sum() == 2000
        for kind in ("dirichlet", "dirichlet_clients", "labels"):
            with pytest.raises(ValueError, match=f"federated.partition={kind} divides by class.*no class ids: use iid"):
                made(kind, y=y, classes=classes)


@pytest.mark.parametrize("kind", KINDS)
def test_more_clients_than_the_samples_allow(kind):
    with pytest.raises(ValueError, match="minimum=5 samples each need 2005 samples, and there are 2000"):
        made(kind, clients=401)


def test_the_names_are_the_kinds():
    assert set(KINDS) == set(get_args(Kind))


def test_no_client_is_ever_empty():
    y = np.repeat([0, 1], [99, 1])
    with pytest.raises(ValueError, match="client 3 with 0 samples, and federated.minimum=1"):
        made("labels", y=y, clients=4, labels=1, minimum=0, classes=2)  # clients 1 and 3 share a class of one sample


# ---- iid and domain


def test_iid_is_even_and_blind():
    p = made("iid", clients=7)
    assert p.sizes.tolist() == [286, 286, 286, 286, 286, 285, 285]  # 2000 = 7 * 285 + 5
    assert stats.chi2_contingency(table(p)).pvalue > 1e-4
    assert np.array_equal(made("noise", clients=7).owner, p.owner)


def test_domains():
    domain = np.array([9, 9, 9, 2, 2, 2, 2, 9, 9])
    p = made("domain", y=np.zeros(9), clients=2, domain=domain, minimum=1)
    assert p.owner.tolist() == [1, 1, 1, 0, 0, 0, 0, 1, 1]
    p = made("domain", y=np.zeros(9), clients=4, domain=domain, minimum=1)
    assert p.sizes.tolist() == [2, 2, 3, 2]
    assert (p.owner // 2).tolist() == [1, 1, 1, 0, 0, 0, 0, 1, 1]


def test_domains_that_do_not_fit():
    for clients in (1, 3):
        with pytest.raises(ValueError, match=f"clients={clients} does not fit the 2 domains.*takes 2, 4, 6, ..."):
            made("domain", clients=clients)
    with pytest.raises(ValueError, match="needs a data set with domains, and this one has none"):
        made("domain", domain=None)
    with pytest.raises(ValueError, match="leaves client 1 with 3 samples, and federated.minimum=5: lower"):
        made("domain", clients=2, domain=np.repeat([0, 1], [1997, 3]))


# ---- labels


def test_one_label_each():
    y = np.array([0, 1, 0, 0, 1, 2, 0, 0, 2, 0, 0])  # 7, 2 and 2 samples
    p = made("labels", y=y, clients=3, labels=1, minimum=1, classes=3)
    assert np.array_equal(p.owner, y)
    # clients 0, 3 and 6 have class 0: 7 = 3 + 2 + 2; 1 and 4 class 1; 2 and 5 class 2
    p = made("labels", y=y, clients=7, labels=1, minimum=1, classes=3)
    assert table(p, y, 3).tolist() == [[3, 0, 0, 2, 0, 0, 2], [0, 1, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 1, 0]]
    # two clients: nobody has class 2
    p = made("labels", y=y, clients=2, labels=1, minimum=1, classes=3)
    assert np.array_equal(p.owner, np.where(y == 2, -1, y))


def test_labels_per_client():
    for clients, k in ((10, 2), (12, 3), (3, 4)):
        counts = table(made("labels", clients=clients, labels=k))
        assert ((counts > 0).sum(0) == k).all()
        assert all(counts[i % CLASSES, i] > 0 for i in range(clients))
        for row in counts:  # np.array_split's sizes among the clients that have the class
            shares = row[row > 0]
            assert shares.tolist() == [len(part) for part in np.array_split(np.arange(row.sum()), len(shares))]
    every = table(made("labels", clients=4, labels=CLASSES))
    sizes = np.bincount(Y)
    assert every.tolist() == [[len(part) for part in np.array_split(np.arange(size), 4)] for size in sizes]


def test_the_other_labels_are_drawn_alike():
    pairs = np.zeros((CLASSES, CLASSES))
    for seed in range(300):
        for client, column in enumerate(table(made("labels", y=Y[:300], seed=seed, minimum=1), Y[:300]).T):
            (other,) = set(np.flatnonzero(column)) - {client % CLASSES}
            pairs[client % CLASSES, other] += 1
    assert (np.diag(pairs) == 0).all()
    assert stats.chisquare(pairs[~np.eye(CLASSES, dtype=bool)]).pvalue > 1e-4  # 20 cells, 3000 draws


def test_more_labels_than_classes():
    with pytest.raises(ValueError, match="federated.labels=6, and this data set has 5 classes"):
        made("labels", labels=6)


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


# ---- noise


def test_levels():
    # the code of Li et al. with noise 0.1 and 5 parties: 0.1 / 4 * i
    assert levels(5, 0.1).tolist() == pytest.approx([0, 0.025, 0.05, 0.075, 0.1])
    assert levels(1, 0.1).tolist() == [0]


@pytest.mark.parametrize("shape", [(3, 4, 5), (7,)])  # the second is odd
def test_noise_by_a_loop(shape):
    x = torch.randn(6, *shape)
    scale = torch.tensor([2.0, 3.0, 4.0]).view(3, 1, 1) if len(shape) == 3 else torch.tensor(2.0)
    level, index = torch.rand(6), torch.tensor([5, 0, 977, 1, 2, 60_000])
    count = math.prod(shape)
    half = (count + 1) // 2
    out = feature_noise(x, level, scale, 4, index)
    assert out.dtype == x.dtype
    for sample in range(6):
        u = keyed.uniform(4, "feature noise", 0, index[sample : sample + 1], 2 * half)[0].tolist()
        radius = [math.sqrt(-2 * math.log(1 - value)) for value in u[:half]]
        normal = [r * math.cos(2 * math.pi * value) for r, value in zip(radius, u[half:])]
        normal += [r * math.sin(2 * math.pi * value) for r, value in zip(radius, u[half:])]
        expected = x[sample] + scale * level[sample] * torch.tensor(normal[:count]).view(shape)
        torch.testing.assert_close(out[sample], expected)


def test_noise_belongs_to_the_sample():
    x, level, scale = torch.randn(8, 1, 6, 6), torch.rand(8), torch.tensor(3.0)
    index = torch.arange(8) * 11
    out = feature_noise(x, level, scale, 0, index)
    order = torch.tensor([3, 1, 6])
    assert torch.equal(feature_noise(x[order], level[order], scale, 0, index[order]), out[order])
    assert (feature_noise(x, level, scale, 1, index) != out).float().mean() > 0.99
    rows = feature_noise(x.view(2, 4, 1, 6, 6), level.view(2, 4), scale, 0, index.view(2, 4))  # clients side by side
    assert torch.equal(rows.view_as(out), out)
    one_level = feature_noise(x.view(2, 4, 1, 6, 6), level[:2, None], scale, 0, index.view(2, 4))
    assert torch.equal(one_level[1], feature_noise(x[4:], level[1].expand(4), scale, 0, index[4:]))
    assert torch.equal(feature_noise(x, torch.zeros(()), scale, 0, index), x)
    half = feature_noise(x.half(), level, scale, 0, index)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half, out.half(), atol=2e-2, rtol=0)


def test_noise_is_standard_normal():
    noise = feature_noise(torch.zeros(400, 501), torch.tensor(0.5), torch.tensor(2.0), 0, torch.arange(400)).numpy()
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-4
    # the cosines and the sines of the same radii, neighbouring pixels, neighbouring samples
    for a, b in ((noise[:, :250], noise[:, 251:]), (noise[:, 1:], noise[:, :-1]), (noise[1:], noise[:-1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / math.sqrt(a.size)


# ---- what is saved


@pytest.mark.parametrize("kind", ["dirichlet", "labels", "iid"])
def test_what_is_saved(kind, tmp_path):
    p = made(kind, seed=12, clients=3, labels=1, minimum=2)
    p.save(tmp_path, Y, CLASSES)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["partition.npz", "partition.png"]
    saved = np.load(tmp_path / "partition.npz")
    assert np.array_equal(saved["owner"], p.owner)
    assert np.array_equal(saved["counts"], table(p, Y, CLASSES))
    facts = {name: saved[name].item() for name in saved.files if name not in ("owner", "counts")}
    read = {"dirichlet": {"alpha": 0.5, "minimum": 2}, "labels": {"labels": 1}, "iid": {}}
    assert facts == {"kind": kind, "clients": 3, "seed": 12} | read[kind]


@pytest.mark.parametrize("clients, classes", [(1, 1), (10, 2), (10, 10), (200, 10), (60, 300), (300, None)])
def test_the_picture_is_drawn(clients, classes, tmp_path):
    from matplotlib.image import imread

    y = (
        (np.arange(3000) % classes).astype(np.uint8 if classes <= 10 else np.int64)
        if classes
        else np.linspace(0, 1, 3000)
    )
    p = made("iid", y=y, clients=clients, classes=classes)
    p.save(tmp_path, y, classes)
    pixels = imread(tmp_path / "partition.png")
    high, wide, _ = pixels.shape
    assert 200 < high < 1200
    assert 600 < wide < 1700
    dark = (pixels[..., :3].min(-1) < 0.9).mean()
    assert 0.1 < dark < 0.8
    assert (pixels[[0, -1]] == 1).all()  # nothing is cut off
    assert (pixels[:, [0, -1]] == 1).all()


# ---- real data


def test_mnist(data_dir):
    from pyarrow import parquet

    (file,) = Path(data_dir, "mnist").glob("train-*.parquet")
    y = parquet.read_table(file, columns=["label"])["label"].to_numpy()  # the labels alone: decoding takes longer
    assert len(y) == 60_000
    options = dict(clients=10, minimum=10, classes=10)
    p = made("dirichlet", y=y, **options)
    assert (p.owner >= 0).all()
    assert p.sizes.min() >= 10
    assert p.sizes.max() <= 6000 + 6742  # the largest class, of ones
    for k in (1, 2, 3):
        p = made("labels", y=y, labels=k, **options)
        assert (p.owner >= 0).all()  # ten clients for ten classes: every class is somebody's
        assert ((table(p, y, 10) > 0).sum(0) == k).all()
    assert np.array_equal(made("labels", y=y, labels=1, **options).owner, y)
    assert made("quantity", y=y, **options).sizes.min() >= 10
