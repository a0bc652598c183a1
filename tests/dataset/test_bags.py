"""Bags of labels: how they are dealt, how an epoch visits them, and the losses that learn from them."""

from itertools import product

import numpy as np
import pytest
import torch

from runner.core.batch import Batch, Output
from runner.core.mistake import ConfigError
from runner.dataset.digits import Digits
from runner.dataset.tables import Table
from runner.loss.aggregate_response import AggregateResponse
from runner.loss.easyllp import EasyLLP
from tests.engine.test_replicas import assert_pack_equals_alone
from tests.tiny import SMALL, trainer


def prepared(dataset):
    dataset.prepare()
    return dataset


def rows(split):
    return {row.tobytes(): i for i, row in enumerate(split.x.flatten(1).numpy())}


def test_the_target_is_the_mean_of_the_bag():
    plain, bags = (prepared(Digits(bag_size=size, val=0.2)) for size in (1, 7))
    labels = {row: plain.train.y[i] for row, i in rows(plain.train).items()}
    count = len(plain.train) // 7
    assert (len(bags.train), bags.train.y.shape) == (7 * count, (7 * count, 10))
    where = rows(bags.train)
    assert len(where) == 7 * count  # no sample twice
    own = torch.stack([labels[row] for row in where])
    for bag in range(count):
        shares = np.bincount(own[7 * bag : 7 * bag + 7].numpy(), minlength=10) / 7
        for i in range(7):
            np.testing.assert_allclose(bags.train.y[7 * bag + i].numpy(), shares, rtol=1e-6)
    assert bags.class_counts == np.bincount(own.numpy(), minlength=10).tolist()
    assert torch.equal(bags.val.y, plain.val.y) and torch.equal(bags.test.y, plain.test.y)
    assert bags.context["bag"] == 7 and plain.context["bag"] == 1


def test_regression_has_bags_too():
    bags = prepared(Table("diabetes", bag_size=4, val=0.0))
    plain = prepared(Table("diabetes", val=0.0))
    labels = {row: plain.train.y[i].item() for row, i in rows(plain.train).items()}
    own = torch.tensor([labels[row] for row in rows(bags.train)])
    torch.testing.assert_close(bags.train.y[::4], own.unflatten(0, (-1, 4)).mean(1))
    assert torch.equal(bags.train.y[::4], bags.train.y[3::4])


def test_bags_are_drawn_at_random_by_the_seed():
    a, b, c = (prepared(Digits(bag_size=7, seed=seed, damage_seed=0, val=0.0)) for seed in (1, 1, 2))
    assert torch.equal(a.train.x, b.train.x)
    assert not torch.equal(a.train.x, c.train.x)
    with pytest.raises(ValueError, match="bag_size=2000 is more than the 1438"):
        prepared(Digits(bag_size=2000, val=0.0))


def test_an_epoch_visits_bag_after_bag():
    run = trainer(*SMALL, "dataset.bag_size=8", "loss=easyllp")
    first, second = ([batch.index for batch in run.loader.epoch(epoch)] for epoch in (0, 1))
    for order in (first, second):
        assert sorted(torch.cat(order).tolist()) == list(range(176))
        for index in order:
            bags = index.view(-1, 8)
            assert torch.equal(bags - bags[:, :1], torch.arange(8).expand(len(bags), 8))
            assert (bags[:, 0] % 8 == 0).all()
    assert not torch.equal(torch.cat(first), torch.cat(second))


def test_clients_have_no_bags():
    with pytest.raises(ConfigError, match="takes bags apart"):
        trainer(*SMALL, "dataset.bag_size=4", "loss=easyllp", "federated=fedavg", "federated.clients=2")


# ---- EasyLLP


def value(loss, z, y, index=None):
    index = torch.arange(len(y)) if index is None else index
    return loss(Output(z, z), Batch(torch.zeros(len(y), 2), y, index))


def test_easyllp_by_hand():
    """k = 2 and p = (3/4, 1/4). In a bag of shares (1/2, 1/2): weights 2 (-1/4) + 3/4 = 1/4 and 3/4; at z = (0, 0) both
    cost ln 2. In one of shares (1, 0): 5/4 and -1/4; at z = (ln 3, 0), -ln(3/4) and -ln(1/4)."""
    z = torch.tensor([[0.0, 0.0], [np.log(3), 0.0]], dtype=torch.float64)
    found = value(EasyLLP(bag=2, class_counts=[3, 1]), z, torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
    np.testing.assert_allclose(found.numpy(), [np.log(2), 1.25 * np.log(4 / 3) - 0.25 * np.log(4)], rtol=1e-12)


def test_easyllp_is_unbiased():
    """Over all bags of a sample with two others drawn from the prior, its loss is on average that with its label."""
    prior, z = np.array([0.5, 0.3, 0.2]), torch.tensor([[0.3, -1.0, 2.0]], dtype=torch.float64)
    loss = EasyLLP(bag=3, class_counts=[5, 3, 2])
    for label in range(3):
        mean = 0.0
        for others in product(range(3), repeat=2):
            shares = torch.bincount(torch.tensor([label, *others]), minlength=3).double()[None] / 3
            mean += prior[list(others)].prod() * value(loss, z, shares).item()
        own = torch.nn.functional.cross_entropy(z, torch.tensor([label])).item()
        assert mean == pytest.approx(own, rel=1e-12)


def test_easyllp_with_bags_of_one_is_cross_entropy():
    z, y = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 0])
    found = value(EasyLLP(bag=1, class_counts=[5, 3, 2]), z, y)
    torch.testing.assert_close(found, torch.nn.functional.cross_entropy(z, y, reduction="none"))


# ---- aggregate responses


def test_aggregate_response_by_hand():
    """A bag with outputs 1 and 3 and mean target 0, another with outputs 5 and 5 and mean target 4: bag level 4, 4 and
    1, 1, instance level 1, 9 and 1, 1. The samples come in any order."""
    z, y = torch.tensor([[1.0], [5.0], [3.0], [5.0]]), torch.tensor([0.0, 4.0, 0.0, 4.0])
    index = torch.tensor([6, 1, 7, 0])
    for rho, expected in ((0.0, [4, 1, 4, 1]), (1.0, [1, 1, 9, 1]), (0.5, [2.5, 1, 6.5, 1])):
        assert value(AggregateResponse(rho, bag=2), z, y, index).tolist() == expected


def test_the_instance_level_adds_the_variance_within_the_bag():
    z, y = torch.randn(12, 4, dtype=torch.float64), torch.rand(3, 4, dtype=torch.float64).repeat_interleave(4, 0)
    whole, single = (value(AggregateResponse(rho, bag=4), z, y).mean() for rho in (0.0, 1.0))
    within = z.softmax(-1).view(3, 4, 4).var(1, correction=0).sum(-1).mean()
    torch.testing.assert_close(single, whole + within)


# ---- runs


@pytest.mark.parametrize("words", [["loss=easyllp"], ["loss=aggregate_response", "loss.rho=0"]])
def test_digits_are_learned_from_bags(words):
    run = trainer(
        "model=mlp", "model.hidden=[64]", "dataset.bag_size=4", "train.batch_size=32", "optim.lr=0.05", *words
    )
    for epoch in range(10):
        for batch in run.loader.epoch(epoch):
            run.step(batch)
    assert run.evaluate(run.dataset.test)["accuracy"] > 0.5


@pytest.mark.parametrize("option", ["easyllp", "aggregate_response"])
def test_packed_equals_alone(option):
    """Each run with bags of its own."""
    cells = [[*SMALL, f"loss={option}", "dataset.bag_size=4", f"seed={seed}"] for seed in range(2)]
    assert_pack_equals_alone(lambda cells: [trainer(*cell, double=True) for cell in cells], cells)


def test_several_regression_targets_are_not_taken_for_shares_of_classes():
    from types import SimpleNamespace

    loss = AggregateResponse(bag=2)
    for task, classes in (("regression", 1), ("classes", 3)):
        assert loss.notices(SimpleNamespace(dataset=SimpleNamespace(task=task, classes=classes))) == []
    with pytest.raises(ConfigError, match="takes one target a sample, and this data set has 3"):
        loss.notices(SimpleNamespace(dataset=SimpleNamespace(task="regression", classes=3)))
