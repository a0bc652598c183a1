"""Measures against a plain numpy transcription, scikit-learn, and values worked out by hand."""

from math import log

import numpy as np
import pytest
import torch

from runner.measure import calibration_error, measures


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2


def numpy_measures(logits, y):
    """Accuracy, NLL and ECE (Guo et al., arXiv:1706.04599, equation 3, 15 bins), one bin and one sample at a time."""
    hits, nll, samples = 0, 0.0, []
    for z, target in zip(logits.astype(np.float64), y, strict=True):
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        hits += p.argmax() == target
        nll -= np.log(p[target])
        samples.append((p.max(), float(p.argmax() == target)))
    ece = 0.0
    for m in range(1, 16):
        inside = [(c, a) for c, a in samples if (m - 1) / 15 < c <= m / 15]
        if inside:
            confidence, accuracy = np.mean(inside, axis=0)
            ece += len(inside) / len(samples) * abs(accuracy - confidence)
    return {"accuracy": hits / len(y), "nll": nll / len(y), "ece": ece}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_classes_equal_numpy(dtype):
    logits, y = draw(500, 7).to(dtype), torch.randint(7, (500,), generator=torch.Generator().manual_seed(1))
    expected = numpy_measures(logits.double().numpy(), y.numpy())
    assert measures(logits, y, "classes") == pytest.approx(expected, abs=1e-6)


def test_classes_equal_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics", reason="skipped the comparison with scikit-learn: not installed")
    logits, y = draw(300, 4, seed=2).double(), torch.randint(4, (300,), generator=torch.Generator().manual_seed(3))
    found = measures(logits, y, "classes")
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(y, logits.argmax(-1)))
    assert found["nll"] == pytest.approx(metrics.log_loss(y, logits.softmax(-1).numpy(), labels=range(4)))


def test_classes_by_hand():
    # softmax = (3/4, 1/4) twice and (1/4, 3/4) once; the first and the third are right
    logits = torch.tensor([[log(3), 0.0], [log(3), 0.0], [0.0, log(3)]])
    found = measures(logits, torch.tensor([0, 1, 1]), "classes")
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["nll"] == pytest.approx((2 * log(4 / 3) + log(4)) / 3)
    assert found["ece"] == pytest.approx(3 / 4 - 2 / 3)  # one bin: confidence 3/4, accuracy 2/3
    assert list(found) == ["accuracy", "nll", "ece"]


def test_bins_are_closed_on_the_right():
    # 1/5 = 3/15 belongs to (2/15, 3/15] and joins 0.15; a bin of its own would give |1 - 0.2| + |0 - 0.15|, over 2
    confidence = torch.tensor([3 / 15, 0.15], dtype=torch.float64)
    right = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert calibration_error(confidence, right) == pytest.approx((1 - 3 / 15 + 0 - 0.15) / 2)
    # just above the edge it is in the next bin
    confidence[0] += 1e-9
    assert calibration_error(confidence, right) == pytest.approx((1 - 3 / 15 + 0.15) / 2)


def test_bins_weigh_by_their_samples():
    confidence = torch.tensor([1.0, 1.0, 1.0, 0.5], dtype=torch.float64)
    right = torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    # bin 15: accuracy 2/3, confidence 1; bin 8: accuracy 1, confidence 1/2
    assert calibration_error(confidence, right) == pytest.approx(3 / 4 * 1 / 3 + 1 / 4 * 1 / 2)


def test_classes_at_extreme_logits():
    found = measures(torch.tensor([[1e4, -1e4], [1e4, -1e4]]), torch.tensor([0, 1]), "classes")
    assert found == pytest.approx({"accuracy": 0.5, "nll": 1e4, "ece": 0.5})


def test_multilabel_by_hand():
    # sigmoid = 3/4 or 1/4; of the four labels three are on the right side, and the first sample has both
    logits = torch.tensor([[log(3), -log(3)], [log(3), log(3)]])
    found = measures(logits, torch.tensor([[1.0, 0.0], [1.0, 0.0]]), "multilabel")
    assert found == pytest.approx({"accuracy": 3 / 4, "exact": 1 / 2, "nll": (3 * log(4 / 3) + log(4)) / 4})


def test_multilabel_at_extreme_logits():
    found = measures(torch.tensor([[1e4, 1e4]]), torch.tensor([[1, 0]]), "multilabel")
    assert found == pytest.approx({"accuracy": 0.5, "exact": 0.0, "nll": 5e3})


def test_regression_by_hand():
    # errors 1 and -3
    expected = {"mae": 2.0, "rmse": 5.0**0.5}
    assert measures(torch.tensor([[3.0], [1.0]]), torch.tensor([2.0, 4.0]), "regression") == pytest.approx(expected)
    assert measures(torch.tensor([[3.0, 1.0]]), torch.tensor([[2.0, 4.0]]), "regression") == pytest.approx(expected)


@pytest.mark.parametrize(
    ("logits", "y", "task"),
    [
        (torch.zeros(3, 2), torch.zeros(3), "ranking"),
        (torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64), "classes"),
        (torch.zeros(3, 2), torch.zeros(3), "multilabel"),
        (torch.zeros(3, 2), torch.zeros(3), "regression"),
    ],
)
def test_what_does_not_fit(logits, y, task):
    with pytest.raises(ValueError, match=task):
        measures(logits, y, task)
