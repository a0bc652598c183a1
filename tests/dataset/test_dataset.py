"""Data sets: what is loaded, found, cached, split and damaged."""

import numpy as np
import pytest
import torch

from runner.dataset import Split, statistics
from runner.dataset.digits import Digits
from tests.dataset.made import Numbered, positions, prepared, whole


class Numbers(Numbered):
    task = "regression"


BALANCED = torch.arange(4000) % 10


# ---- splits


def test_validation_is_a_partition():
    dataset = prepared(BALANCED, val=0.15)
    assert len(dataset.val) == 600
    assert len(dataset.train) == 3400
    labels, where = whole(dataset)
    assert torch.equal(where, torch.arange(4000))
    assert torch.equal(labels, BALANCED)


def test_no_validation():
    dataset = prepared(BALANCED, val=0.0)
    assert dataset.val is None
    assert torch.equal(positions(dataset.train), torch.arange(4000))
    assert dataset.record["val"] == 0


def test_splits_depend_on_the_seed_alone():
    a, b, c = prepared(BALANCED, seed=1), prepared(BALANCED, seed=1), prepared(BALANCED, seed=2)
    assert torch.equal(a.val.x, b.val.x)
    assert not torch.equal(a.val.x, c.val.x)


def test_damage_seed_holds_the_damage_but_not_the_split():
    settings = {"noise": "symmetric", "noise_rate": 0.4, "imbalance": 5.0, "subset": 700, "damage_seed": 9}
    a, b = prepared(BALANCED, seed=1, **settings), prepared(BALANCED, seed=2, **settings)
    assert all(torch.equal(left, right) for left, right in zip(whole(a), whole(b), strict=True))
    assert not torch.equal(a.val.x, b.val.x)
    other = prepared(BALANCED, seed=1, **settings | {"damage_seed": 10})
    assert not torch.equal(whole(a)[1], whole(other)[1])


def test_draws_are_independent():
    clean = prepared(BALANCED, subset=1000)
    noisy = prepared(BALANCED, subset=1000, noise="pair", noise_rate=0.5)
    assert torch.equal(clean.train.x, noisy.train.x)
    assert torch.equal(clean.val.x, noisy.val.x)
    # the same samples are hit whatever is held out
    other = prepared(BALANCED, subset=1000, noise="pair", noise_rate=0.5, val=0.3)
    assert torch.equal(whole(noisy)[0], whole(other)[0])


def test_subset_is_drawn_before_validation():
    dataset = prepared(BALANCED, subset=200, val=0.25)
    assert (len(dataset.train), len(dataset.val)) == (150, 50)
    assert len(set(whole(dataset)[1].tolist())) == 200


def test_domain_follows():
    class Domains(Numbered):
        def load(self):
            train, test = super().load()
            return Split(train.x, train.y, train.x[:, 0].long() * 3), test

    dataset = Domains(BALANCED, subset=100, noise="pair", noise_rate=0.1)
    dataset.prepare()
    assert torch.equal(dataset.train.domain, positions(dataset.train) * 3)


def test_context():
    dataset = prepared([0, 0, 0, 1, 1, 2], val=0.0)
    expected = {"shape": (1,), "bounds": None, "classes": 3, "samples": 6, "class_counts": [3, 2, 1], "bag": 1}
    assert dataset.context == expected | {"heads": None, "vocabulary": None}
    regression = Numbers([0.5, 1.5, 2.5], val=0.0)
    regression.prepare()
    assert regression.context["class_counts"] is None


# ---- settings that do not fit


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        (Numbered, {"noise_rate": 0.2}, "noise=symmetric"),
        (Numbered, {"noise": "asymmetric", "noise_rate": 0.2}, "pair"),
        (Numbers, {"noise": "symmetric", "noise_rate": 0.2}, "regression"),
        (Numbers, {"imbalance": 2.0}, "regression"),
    ],
)
def test_wrong_settings_are_found_before_loading(kind, settings, words):
    with pytest.raises(ValueError, match=words) as error:
        kind(BALANCED, **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"subset": 4001}, "subset=4001 is more than the 4000"),
        ({"val": 1.0}, "no training sample"),
        ({"val": 0.0001}, "no validation sample"),
        ({"noise": "asymmetric", "asymmetric": {3: 10}}, "maps 3 to 10, and the classes are 0..9"),
    ],
)
def test_settings_that_do_not_fit_the_data(settings, words):
    with pytest.raises(ValueError, match=words) as error:
        prepared(BALANCED, **settings)
    assert "\n" not in str(error.value)


def test_labels_must_be_classes():
    dataset = Numbered(torch.tensor([0, 1, -1, 2]), val=0.0)
    with pytest.raises(ValueError, match=r"the training split of .*: labels must be in 0\.\.2.*row 2 is -1"):
        dataset.prepare()
    with pytest.raises(ValueError, match="class 1 has none"):
        prepared([0, 0, 2, 2], val=0.0, imbalance=2.0)


def test_statistics_are_numpys():
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2300, 3, 5, 4), dtype=np.uint8))
    mean, std = statistics(x)
    np.testing.assert_allclose(mean, x.numpy().mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(std, x.numpy().std((0, 2, 3)), rtol=1e-6)


# ---- digits


def test_digits_are_scikit_learns():
    reference = pytest.importorskip("sklearn.datasets").load_digits()
    dataset = Digits(val=0.1)
    dataset.prepare()
    parts = (dataset.train, dataset.val, dataset.test)
    rows = np.concatenate([np.c_[part.x.view(len(part), 64).numpy(), part.y.numpy()] for part in parts])
    expected = np.c_[reference.data, reference.target]
    assert rows.shape == (1797, 65)
    assert sorted(map(tuple, rows.astype(int))) == sorted(map(tuple, expected.astype(int)))
    assert dataset.train.x.dtype == torch.uint8
    assert dataset.shape == (1, 8, 8)
    pixels = np.concatenate([dataset.train.x.numpy(), dataset.val.x.numpy()])
    np.testing.assert_allclose([dataset.mean.item(), dataset.std.item()], [pixels.mean(), pixels.std()], rtol=1e-5)


def test_digits_test_split_is_a_fixed_stratified_fifth():
    tests = []
    for seed in (0, 5):
        dataset = Digits(seed=seed)
        dataset.prepare()
        tests.append(dataset.test)
    assert torch.equal(tests[0].x, tests[1].x)
    assert len(tests[0]) == 359
    counts = np.bincount(pytest.importorskip("sklearn.datasets").load_digits().target)
    assert np.abs(np.bincount(tests[0].y.numpy()) - counts / 5).max() <= 0.5
