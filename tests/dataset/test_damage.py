"""Labels that are wrong on purpose, and classes that are rare."""

import json

import pytest
import torch

from tests.dataset.made import MANY, noisy, positions, prepared, within

# ---- noise


def test_symmetric():
    y = noisy("symmetric", 0.5)
    assert within(int((y != MANY).sum()), 20000, 0.5 * 0.9)
    for label in range(10):  # every class, the true one included, receives a tenth of the redrawn
        assert within(int((y[MANY == 3] == label).sum()), 2000, 0.05 + 0.5 * (label == 3))


def test_symmetric_other():
    y = noisy("symmetric_other", 0.5)
    assert within(int((y != MANY).sum()), 20000, 0.5)
    for label in set(range(10)) - {3}:
        assert within(int((y[MANY == 3] == label).sum()), 2000, 0.5 / 9)


def test_symmetric_other_at_one_changes_every_label():
    assert (noisy("symmetric_other", 1.0) != MANY).all()


def test_pair():
    y = noisy("pair", 0.3)
    changed = y != MANY
    assert within(int(changed.sum()), 20000, 0.3)
    assert torch.equal(y[changed], (MANY[changed] + 1) % 10)
    assert (y[changed & (MANY == 9)] == 0).all()


def test_asymmetric():
    mapping = {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}
    y = noisy("asymmetric", 0.4, asymmetric=mapping)
    for label in range(10):
        here = y[label == MANY]
        changed = here[here != label]
        if label in mapping:
            assert within(len(changed), 2000, 0.4)
            assert (changed == mapping[label]).all()
        else:
            assert len(changed) == 0


def test_rate_zero_changes_nothing():
    assert torch.equal(noisy("symmetric", 0.0), MANY)


@pytest.mark.parametrize("kind", ["symmetric", "pair"])
def test_record_says_what_happened(kind):
    dataset = prepared(MANY, noise=kind, noise_rate=0.25, seed=3)
    truth = {
        name: int((split.y != MANY[positions(split)]).sum())
        for name, split in vars(dataset).items()
        if name in ("train", "val")
    }
    facts = json.loads(json.dumps(dataset.record))["noise"]
    assert (facts["kind"], facts["asked"]) == (kind, 0.25)
    assert facts["changed_train"] == truth["train"] > 0
    assert facts["changed_val"] == truth["val"] > 0  # validation labels are as noisy
    assert facts["changed"] == truth["train"] + truth["val"]
    assert facts["realised"] == facts["changed"] / 20000
    assert dataset.record["class_counts"] == [int((dataset.train.y == label).sum()) for label in range(10)]


def test_test_split_is_never_damaged():
    dataset = prepared(MANY, noise="symmetric_other", noise_rate=1.0, imbalance=10.0, subset=500)
    assert torch.equal(dataset.test.y, MANY[:50])


# ---- long tail


def test_long_tail_has_the_published_class_sizes():
    labels = torch.arange(50000) % 10
    dataset = prepared(labels, imbalance=100.0, val=0.0)
    # CIFAR-10-LT of Cao et al. 2019 at ratio 100
    assert dataset.class_counts == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert dataset.record["imbalance"] == {"asked": 100.0, "realised": 100.0}
    hundred = prepared(torch.arange(50000) % 100, imbalance=100.0, val=0.0)
    assert len(hundred.train) == 10847  # CIFAR-100-LT
    assert (hundred.class_counts[0], hundred.class_counts[-1]) == (500, 5)


def test_long_tail_of_uneven_classes_keeps_the_ratio():
    labels = torch.tensor([0] * 90 + [1] * 100 + [2] * 200)
    # formula: shares 1, 0.5, 0.25; class 0 limits n_max to 90
    assert prepared(labels, imbalance=4.0, val=0.0).class_counts == [90, 45, 22]
    labels = torch.tensor([0] * 90 + [1] * 20 + [2] * 200)
    assert prepared(labels, imbalance=4.0, val=0.0).class_counts == [40, 20, 10]
