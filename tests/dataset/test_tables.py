"""The tables of scikit-learn: what scikit-learn itself loads, split by strata."""

import numpy as np
import pytest
import torch

from runner.dataset.loader import Loader
from runner.dataset.tables import Table
from tests.tiny import compose, trainer

NAMES = ["breast_cancer", "wine", "diabetes"]
SIZES = {"breast_cancer": (569, 30, 2), "wine": (178, 13, 3), "diabetes": (442, 10, 1)}


def prepared(name, **settings):
    dataset = Table(name, **{"val": 0.0} | settings)
    dataset.prepare()
    return dataset


def rows(split):
    return {tuple(row) for row in split.x.tolist()}


@pytest.mark.parametrize("name", NAMES)
def test_they_are_what_scikit_learn_loads(name):
    datasets = pytest.importorskip("sklearn.datasets", reason="skipped: scikit-learn is not installed")
    options = {"scaled": False} if name == "diabetes" else {}
    bunch = getattr(datasets, f"load_{name}")(**options)
    dataset = prepared(name)
    samples, features, outputs = SIZES[name]
    assert (dataset.shape, dataset.classes) == ((features,), outputs)
    assert len(dataset.train) + len(dataset.test) == samples
    theirs = {tuple(row): y for row, y in zip(bunch.data.astype(np.float32).tolist(), bunch.target, strict=True)}
    for split in (dataset.train, dataset.test):
        y = split.y.double()
        if name == "diabetes":
            y = y * dataset.record["target"]["std"] + dataset.record["target"]["mean"]
        for x, target in zip(split.x.tolist(), y.tolist(), strict=True):
            assert theirs[tuple(x)] == pytest.approx(target, rel=1e-5)
    if name != "diabetes":
        assert dataset.names == list(bunch.target_names)


@pytest.mark.parametrize("name", ["breast_cancer", "wine"])
def test_a_fifth_of_every_class_is_the_test(name):
    a, b = prepared(name, seed=1), prepared(name, seed=2)
    assert rows(a.test) == rows(b.test)
    assert not rows(a.test) & rows(a.train)
    for label in range(a.classes):
        held, rest = ((split.y == label).sum().item() for split in (a.test, a.train))
        assert held == round((held + rest) / 5)


def test_a_fifth_of_every_tenth_is_the_test():
    dataset = prepared("diabetes")
    assert not rows(dataset.test) & rows(dataset.train)
    y = torch.cat([dataset.train.y, dataset.test.y])
    held = torch.arange(442) >= len(dataset.train)
    for number, tenth in enumerate(held[y.argsort(stable=True)].tensor_split(10)):
        assert 7 <= tenth.sum() <= 11, number  # 44 or 45 samples, of which ties at the ends may be a neighbour's
    assert held.sum() == 90  # eight of 44 give 9, two of 45 give 9
    np.testing.assert_allclose([dataset.train.y.double().mean(), dataset.train.y.std(correction=0)], [0, 1], atol=1e-5)
    assert 20 < dataset.record["target"]["std"] < 100
    assert dataset.class_counts is None


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_standardised(name):
    dataset = prepared(name)
    batch = next(Loader(dataset, "cpu", len(dataset.train), seed=0).epoch(0))
    assert batch.x.dtype == batch.y.dtype or name != "diabetes"
    np.testing.assert_allclose(batch.x.double().mean(0), np.zeros(dataset.shape), atol=1e-4)
    np.testing.assert_allclose(batch.x.double().std(0, correction=0), np.ones(dataset.shape), atol=1e-3)


def test_settings_of_every_data_set():
    dataset = prepared("breast_cancer", imbalance=4.0, noise="symmetric_other", noise_rate=0.25, val=0.2)
    assert dataset.record["imbalance"]["realised"] == pytest.approx(4, rel=0.05)
    assert 0.1 < dataset.record["noise"]["realised"] < 0.4
    with pytest.raises(ValueError, match="classes only"):
        Table("diabetes", noise="symmetric", noise_rate=0.1)
    assert len(prepared("diabetes", val=0.25).val) == round((442 - 90) / 4)


@pytest.mark.parametrize("name", NAMES)
def test_the_option_is_the_table(name):
    assert compose(f"dataset={name}", "model=mlp")["dataset"]["name"] == name


@pytest.mark.parametrize(("name", "accuracy"), [("breast_cancer", 0.9), ("wine", 0.9)])
def test_a_linear_model_learns_them(name, accuracy):
    run = trainer(f"dataset={name}", "model=mlp", "model.hidden=[]", "train.batch_size=32", "optim.lr=0.05")
    for epoch in range(10):
        for batch in run.loader.epoch(epoch):
            run.step(batch)
    assert run.evaluate(run.dataset.test)["accuracy"] > accuracy
