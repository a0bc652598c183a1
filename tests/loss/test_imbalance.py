"""Losses and weights made from class counts: points worked out by hand, identities, and what a run does with them."""

from math import exp, log
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from runner.core.batch import Batch, Output
from runner.hook.drw import DRW
from runner.loss.ldam import LDAM
from runner.loss.logit_adjustment import LogitAdjustment
from runner.loss.vs import VectorScaling
from runner.risk.mean import Mean
from tests.tiny import SMALL, trainer

COUNTS = [16, 4, 1]


def batch(y, **more):
    return Batch(torch.zeros(len(y), 2, dtype=torch.float64), y, torch.arange(len(y)), **more)


def value(loss, logits, y):
    return loss(Output(logits, torch.zeros(len(logits), 2)), batch(y))


def test_logit_adjustment_by_hand():
    """Equal logits are the prior: -ln(16/21) and -ln(1/21)."""
    loss = value(LogitAdjustment(class_counts=COUNTS), torch.zeros(2, 3), torch.tensor([0, 2]))
    np.testing.assert_allclose(loss.numpy(), [log(21 / 16), log(21)], rtol=1e-6)


def test_vector_scaling_by_hand():
    """gamma = 1/2: the logits (ln 2) (1, 2, 4) are multiplied by 1, 1/2, 1/4 to ln 2 each, and then only the prior
    counts; with tau = 0 not even that."""
    logits = log(2) * torch.tensor([[1.0, 2.0, 4.0]], dtype=torch.float64)
    y = torch.tensor([1])
    loss = value(VectorScaling(0.5, 1.0, class_counts=COUNTS), logits, y)
    np.testing.assert_allclose(loss.numpy(), [log(21 / 4)], rtol=1e-12)
    loss = value(VectorScaling(0.5, 0.0, class_counts=COUNTS), logits, y)
    np.testing.assert_allclose(loss.numpy(), [log(3)], rtol=1e-12)


def test_margins_by_hand():
    """Counts 16, 4, 1 give the margins 0.5 (1/2, 2^(-1/2), 1); with all logits 0 and s = 10 the loss of a class with
    margin m is ln(1 + 2 exp(10 m))."""
    loss = value(LDAM(0.5, 10.0, classes=3, features=2, class_counts=COUNTS), torch.zeros(3, 3), torch.arange(3))
    margins = [0.25, 0.5 / 2**0.5, 0.5]
    np.testing.assert_allclose(loss.numpy(), [log(1 + 2 * exp(10 * m)) for m in margins], rtol=1e-6)


def test_identities():
    z, y = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 1, 0])
    ce = F.cross_entropy(z, y, reduction="none")
    for loss in (
        LogitAdjustment(0.0, class_counts=COUNTS),
        VectorScaling(0.0, 0.0, class_counts=COUNTS),
        LDAM(0.0, classes=3, features=2, class_counts=COUNTS),
        LogitAdjustment(3.0, class_counts=[7, 7, 7]),
        VectorScaling(0.7, 3.0, class_counts=[7, 7, 7]),
    ):
        torch.testing.assert_close(value(loss, z, y), ce)
    adjusted = value(LogitAdjustment(1.5, class_counts=COUNTS), z, y)
    torch.testing.assert_close(value(VectorScaling(0.0, 1.5, class_counts=COUNTS), z, y), adjusted)


@pytest.mark.parametrize("loss", [LogitAdjustment, VectorScaling, DRW])
def test_counts_that_there_are_not(loss):
    few, one = ({**vars(loss(class_counts=counts))} for counts in ([3, 0, 2], [3, 1, 2]))
    name = "weights" if loss is DRW else "_buffers"
    torch.testing.assert_close(few[name], one[name])
    with pytest.raises(ValueError, match="not class ids"):
        loss(class_counts=None)


# ---- the head of LDAM


def test_the_head_is_the_scaled_cosine():
    loss = LDAM(s=20.0, classes=2, features=2, class_counts=[2, 1]).double()
    with torch.no_grad():
        loss.cosines.weight.copy_(torch.tensor([[0.0, 3.0], [1.0, 1.0]]))
    # (3, 4) / 5 with (0, 1) is 4/5, and with (1, 1) / sqrt(2) it is 7 / (5 sqrt(2))
    out = loss.head(Output(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]], dtype=torch.float64)))
    np.testing.assert_allclose(out.logits.detach().numpy(), [[16.0, 20 * 7 / (5 * 2**0.5)]], rtol=1e-12)
    fresh = LDAM(classes=5, features=7, class_counts=[1] * 5).cosines.weight
    torch.testing.assert_close(fresh.norm(dim=1), torch.ones(5))


def test_a_run_is_measured_by_the_head():
    run = trainer(*SMALL, "loss=ldam", "optim.lr=0.1", double=True)
    untrained = run.evaluate(run.dataset.test)
    for epoch in range(6):
        for part in run.loader.epoch(epoch, 0):
            run.step(part)
    assert run.evaluate(run.dataset.test)["accuracy"] > untrained["accuracy"] + 0.3
    x = next(run.loader.evaluate(run.dataset.test, 500))
    f, w = run.model(x.x).features.detach().numpy(), run.loss.cosines.weight.detach().numpy()
    cosines = (f / np.linalg.norm(f, axis=1, keepdims=True)) @ (w / np.linalg.norm(w, axis=1, keepdims=True)).T
    right = (cosines.argmax(1) == x.y.numpy()).mean()
    assert run.evaluate(run.dataset.test)["accuracy"] == pytest.approx(right, abs=1e-12)


def test_the_head_is_trained_saved_and_restored(tmp_path):
    words = [*SMALL, "loss=ldam", "model.hidden=[16]"]
    run = trainer(*words, folder=tmp_path)
    before = run.loss.cosines.weight.clone()
    run.step(next(run.loader.epoch(0, 0)))
    assert not torch.equal(run.loss.cosines.weight, before)
    other = trainer(*words, folder=tmp_path)
    assert torch.equal(other.loss.cosines.weight, before)  # the same seed
    other.load_state_dict(run.state_dict())
    assert torch.equal(other.loss.cosines.weight, run.loss.cosines.weight)
    run.keep_best("val", {"accuracy": 0.5}, {"epoch": 1})
    assert torch.equal(run.unsaved["val"]["loss"]["cosines.weight"], run.loss.cosines.weight)


# ---- deferred re-weighting


def test_weights_by_hand():
    """beta = 1/2: 1 - beta^n = 1/2, 3/4, 7/8 for n = 1, 2, 3, so that w = 1, 2/3, 4/7."""
    hook = DRW(0, 0.5, class_counts=[1, 2, 3])
    own = batch(torch.tensor([2, 0, 1, 2]))
    changed = hook.batch(SimpleNamespace(count=0, steps_per_epoch=5), own)
    w = np.array([4 / 7, 1, 2 / 3, 4 / 7])
    np.testing.assert_allclose(changed.weight.numpy(), w / w.mean(), rtol=1e-12)
    assert own.weight is None
    # a soft target weighs as its classes do, and weights that are there are multiplied
    soft = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    two = torch.tensor([2.0, 3.0], dtype=torch.float64)
    changed = hook.batch(SimpleNamespace(count=0, steps_per_epoch=5), batch(soft, weight=two))
    w = np.array([5 / 6, 4 / 7])
    np.testing.assert_allclose(changed.weight.numpy(), w / w.mean() * [2, 3], rtol=1e-12)


def test_the_limits_of_beta():
    run, y = SimpleNamespace(count=0, steps_per_epoch=1), torch.tensor([0, 1, 2])
    none = DRW(0, 0.0, class_counts=COUNTS).batch(run, batch(y)).weight
    torch.testing.assert_close(none, torch.ones(3, dtype=torch.float64))
    inverse = DRW(0, 0.9999999, class_counts=COUNTS).batch(run, batch(y)).weight.numpy()
    np.testing.assert_allclose(inverse / inverse[0], [1, 4, 16], rtol=1e-5)


def test_the_epoch_from_which_it_weighs():
    hook = DRW(2, 0.9, class_counts=COUNTS)
    own = batch(torch.tensor([0, 2]))
    for count, weighs in ((0, False), (9, False), (10, True), (999, True)):
        changed = hook.batch(SimpleNamespace(count=count, steps_per_epoch=5), own)
        assert (changed.weight is not None) == weighs


def test_it_is_torchs_weighted_cross_entropy():
    """What kaidic/LDAM-DRW minimises, whose weights are scaled to sum to C; torch divides by their sum."""
    z, y = torch.randn(20, 3, dtype=torch.float64), torch.randint(0, 3, (20,))
    effective = 1.0 - np.power(0.9999, COUNTS)
    per_class = (1.0 - 0.9999) / effective
    expected = F.cross_entropy(z, y, torch.tensor(per_class / per_class.sum() * 3))
    weighed = DRW(0, class_counts=COUNTS).batch(SimpleNamespace(count=0, steps_per_epoch=1), batch(y))
    torch.testing.assert_close(Mean()(F.cross_entropy(z, y, reduction="none"), weighed), expected)


def test_micro_batches_weigh_the_same():
    words = [
        *SMALL,
        "hook=drw",
        "hook.drw.epoch=0",
        "hook.drw.beta=0.99",
        "dataset.imbalance=10",
        "dataset.subset=null",
    ]
    gradients = []
    for parts in (1, 4):
        run = trainer(*words, f"train.accumulate={parts}", double=True)
        assert len(set(run.dataset.class_counts)) > 1
        run.step(next(run.loader.epoch(0, 0)))
        gradients.append(run.weights.grad.clone())
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-14)


def test_a_run_begins_to_weigh_in_the_epoch_asked_for():
    words = [*SMALL, "dataset.imbalance=10", "dataset.subset=null", "hook=drw", "hook.drw.beta=0.99"]
    runs = [trainer(*words, f"hook.drw.epoch={epoch}", double=True) for epoch in (1, 99)]
    for epoch in range(2):
        for run in runs:
            for part in run.loader.epoch(epoch, 0):
                run.step(part)
        assert torch.equal(runs[0].weights.data, runs[1].weights.data) == (epoch == 0)
