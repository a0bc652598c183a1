"""Two digits in two corners and their two labels: taken apart by hand; and what is measured of several tasks."""

import math

import pytest
import torch
from sklearn import metrics

from runner.core.measure import broken, measures
from runner.dataset import Split
from runner.dataset.digits import Digits
from runner.dataset.multi_mnist import MultiMnist
from runner.loss.ce import CrossEntropy
from tests.tiny import trainer

WORDS = ["dataset=multi_mnist", "dataset.source=digits", "dataset.subset=60", "model.hidden=[8]"]


def prepared(dataset):
    dataset.prepare()
    return dataset


@pytest.mark.parametrize("part", ["train", "test"])
def test_the_corners_hold_the_labelled_digits(part):
    source, pairs = (getattr(prepared(one), part) for one in (Digits(val=0.0), MultiMnist(source="digits", val=0.0)))
    assert pairs.x.shape == (len(source), 1, 16, 16) and pairs.y.dtype == torch.int64
    assert torch.equal(pairs.x[:, :, :8, :8], source.x) and torch.equal(pairs.y[:, 0], source.y)
    assert not pairs.x[:, :, :8, 8:].any() and not pairs.x[:, :, 8:, :8].any()
    second = {bytes(x.numpy().tobytes()): int(y) for x, y in zip(source.x, source.y, strict=True)}
    found = [second[bytes(x.numpy().tobytes())] for x in pairs.x[:, :, 8:, 8:].contiguous()]
    assert found == pairs.y[:, 1].tolist()
    assert 0.05 < (pairs.y[:, 0] == pairs.y[:, 1]).float().mean() < 0.15  # drawn whatever the first one is


def test_where_both_have_ink_the_darker_shows():
    pairs = prepared(MultiMnist(source="digits", shift=1, val=0.0)).train  # canvases of 10 x 10
    apart = prepared(MultiMnist(source="digits", shift=4, val=0.0)).train
    canvas = torch.zeros(len(pairs), 1, 10, 10, dtype=torch.uint8)
    canvas[:, :, :8, :8] = apart.x[:, :, :8, :8]
    canvas[:, :, 2:, 2:] = canvas[:, :, 2:, 2:].maximum(apart.x[:, :, 8:, 8:])
    assert torch.equal(pairs.x, canvas) and torch.equal(pairs.y, apart.y)


def test_measures_are_each_tasks_and_their_mean():
    draw = torch.Generator().manual_seed(0)
    logits, y = torch.randn(40, 3, 4, generator=draw), torch.randint(4, (40, 3), generator=draw)
    found = measures(logits, y, "tasks", CrossEntropy(), ("a", "b", "c"))
    for key in ("accuracy", "nll", "ece"):
        assert found[key] == pytest.approx(sum(found[f"{name}_{key}"] for name in "abc") / 3)
    for t, name in enumerate("abc"):
        p = logits[:, t].double().softmax(-1).numpy()
        assert found[f"{name}_accuracy"] == pytest.approx(metrics.accuracy_score(y[:, t], p.argmax(1)))
        assert found[f"{name}_nll"] == pytest.approx(metrics.log_loss(y[:, t], p, labels=range(4)), rel=1e-5)
    assert list(found)[0] == "accuracy" and broken(found) == []
    logits[3, 1] = math.nan
    assert "b_nll" in broken(measures(logits, y, "tasks", CrossEntropy(), ("a", "b", "c")))
    for wrong in (logits[:, 0], logits[:, :2]):
        with pytest.raises(ValueError, match="cannot be measured"):
            measures(wrong, y, "tasks", None, ("a", "b", "c"))


def test_each_head_is_a_linear_classifier_of_the_features():
    run = trainer(*WORDS)
    out = run.outputs(next(iter(run.loader.epoch(0))).x)
    assert out.logits.shape == (54, 2, 10)
    for t, head in enumerate(run.model.head.each):
        assert torch.allclose(out.logits[:, t], out.features @ head.weight.T + head.bias, atol=1e-6)


def test_a_loss_is_each_tasks_and_mixes():
    for more in ([], ["augment=mixup"]):
        run = trainer(*WORDS, *more)
        batch = next(iter(run.loader.epoch(0)))
        losses = run.loss(run.outputs(batch.x), batch)
        one = torch.nn.functional.cross_entropy(run.outputs(batch.x).logits[:, 1], batch.y[:, 1], reduction="none")
        assert losses.shape == (54, 2) and torch.allclose(losses[:, 1], one, atol=1e-6)
        run.step(batch)


@pytest.mark.parametrize(
    ("y", "tasks", "message"),
    [
        (
            torch.zeros(12, dtype=torch.int64),
            ("a", "b"),
            r"labels are \(12,\); they must be \(N, 2\), one class id for",
        ),
        (torch.zeros(12, 3, dtype=torch.int64), ("a", "b"), r"labels are \(12, 3\)"),
        (torch.full((12, 2), 10), ("a", "b"), r"labels must be in 0..9, and 24 of 24 are not: row 0 is 10"),
        (torch.zeros(12, 2, dtype=torch.int64), (), "must name the tasks"),
    ],
)
def test_other_targets_are_refused(y, tasks, message):
    class Wrong(MultiMnist):
        def load(self):
            self.shape, self.bounds, self.mean, self.std = (3,), None, torch.zeros(1), torch.ones(1)
            return Split(torch.randn(12, 3), y), Split(torch.randn(12, 3), y)

    Wrong.tasks = tasks
    with pytest.raises(ValueError, match=message):
        prepared(Wrong(source="digits"))
