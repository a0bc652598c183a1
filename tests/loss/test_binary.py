"""Losses of two classes: points worked out by hand, and what they come to in the limit."""

from math import log

import numpy as np
import pytest
import torch

from runner.core.batch import Batch, Output
from runner.loss.anyloss import METRICS, AnyLoss
from tests.tiny import trainer


def value(loss, logits, y):
    return loss(Output(logits, logits), Batch(torch.zeros(len(y), 2), y, torch.arange(len(y))))


def test_anyloss_by_hand():
    """L = 4 ln 3 and p = 3/4: A = 1 / (1 + 3^-1) = 3/4, and at p = 1/4 it is 1/4. Labels 1, 1, 0, 0 with A = 3/4, 1/4,
    1/4, 1/4: TP = 1, FN = 1, FP = 1/2, TN = 3/2."""
    p = torch.tensor([0.75, 0.25, 0.25, 0.25], dtype=torch.float64)
    logits, y = torch.stack([torch.zeros_like(p), p.logit()], 1), torch.tensor([1, 1, 0, 0])
    expected = {
        "accuracy": 1 - 2.5 / 4,
        "f_beta": 1 - 2 / (2 + 1 + 0.5),
        "g_mean": 1 - (0.5 * 0.75) ** 0.5,
        "balanced_accuracy": 1 - (0.5 + 0.75) / 2,
    }
    assert expected.keys() == METRICS.keys()
    for metric, loss in expected.items():
        found = value(AnyLoss(metric, 4 * log(3), classes=2), logits, y)
        np.testing.assert_allclose(found.numpy(), [loss] * 4, rtol=1e-12)
    # beta = 2: 5 TP / (5 TP + 4 FN + FP) = 5 / 9.5
    found = value(AnyLoss("f_beta", 4 * log(3), 2.0, classes=2), logits, y)
    np.testing.assert_allclose(found.numpy(), [1 - 5 / 9.5] * 4, rtol=1e-12)


def test_at_certain_predictions_it_is_the_metric_itself():
    metrics = pytest.importorskip("sklearn.metrics", reason="skipped: scikit-learn is not installed")
    draw = np.random.default_rng(0)
    y, guess = draw.integers(0, 2, 50), draw.integers(0, 2, 50)
    logits = torch.from_numpy(np.stack([-40.0 * guess, 40.0 * guess - 20], 1))
    recalls = metrics.recall_score(y, guess, average=None)
    for metric, expected in {
        "accuracy": metrics.accuracy_score(y, guess),
        "f_beta": metrics.f1_score(y, guess),
        "g_mean": np.sqrt(recalls.prod()),
        "balanced_accuracy": metrics.balanced_accuracy_score(y, guess),
    }.items():
        found = value(AnyLoss(metric, classes=2), logits, torch.from_numpy(y))
        np.testing.assert_allclose(found.numpy(), 1 - expected, rtol=1e-9)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("label", [0, 1])
def test_a_batch_of_one_class_is_finite(metric, label):
    logits = torch.tensor([[3.0, -1.0], [-2.0, 1.0], [0.0, 0.0]], requires_grad=True)
    loss = value(AnyLoss(metric, classes=2), logits, torch.full((3,), label))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert torch.isfinite(loss).all() and torch.isfinite(gradient).all()
    assert 0 <= loss[0] <= 1


def test_anyloss_has_two_classes():
    with pytest.raises(ValueError, match="loss=anyloss is defined for two classes, and this data set has 10"):
        AnyLoss(classes=10)
    with pytest.raises(ValueError, match=r"loss.positive=2: the classes are 0..1"):
        AnyLoss(positive=2, classes=2)


@pytest.mark.parametrize("metric", ["f_beta", "balanced_accuracy"])
def test_anyloss_learns_a_table(metric):
    words = ["dataset=breast_cancer", "model=mlp", "model.hidden=[]", "train.batch_size=64", "optim.lr=0.01"]
    run = trainer(*words, "loss=anyloss", f"loss.metric={metric}", "loss.L=5")
    for epoch in range(10):
        for batch in run.loader.epoch(epoch):
            run.step(batch)
    assert run.evaluate(run.dataset.test)["accuracy"] > 0.9
