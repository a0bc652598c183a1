"""Partitions of a training set over clients: rules, hand-computed cases, plain transcriptions, statistics."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from scipy import stats

from runner.federated.partition import KINDS, Kind, deal
from tests.federated.dealt import CLASSES, Y, made, table

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
