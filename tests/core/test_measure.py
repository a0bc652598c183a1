"""Measures against a plain numpy transcription, scikit-learn, and values worked out by hand."""

from math import log

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from runner.core.measure import (
    auroc,
    average_precision,
    binned,
    calibration_error,
    class_accuracy,
    confusion,
    equal_mass,
    group_accuracy,
    measures,
    temperature,
)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2


def numpy_measures(logits, y):
    """Accuracies, NLL, Brier and ECE (Guo et al., arXiv:1706.04599, equation 3) in 15 bins of equal width and in 15
    between quantiles, one bin and one sample at a time."""
    nll, brier, samples = 0.0, 0.0, []
    for z, target in zip(logits.astype(np.float64), y, strict=True):
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        nll -= np.log(p[target])
        brier += sum((p[k] - float(k == target)) ** 2 for k in range(len(p)))
        samples.append((p.max(), float(p.argmax() == target), target))

    def ece(edges):
        total = 0.0
        for low, high in zip([0, *edges], [*edges, 1], strict=True):
            inside = [(c, a) for c, a, _ in samples if low < c <= high]
            if inside:
                confidence, accuracy = np.mean(inside, axis=0)
                total += len(inside) / len(samples) * abs(accuracy - confidence)
        return total

    recalls = [np.mean([a for _, a, target in samples if target == k]) for k in set(y.tolist())]
    guess, f1 = logits.argmax(1), []
    for k in set(y.tolist()) | set(guess.tolist()):
        true = sum((guess == k) & (y == k))
        f1.append(2 * true / (2 * true + sum((guess == k) & (y != k)) + sum((guess != k) & (y == k))))
    among = [target in np.argsort(-z, kind="stable")[:5] for z, target in zip(logits, y, strict=True)]
    quantiles = np.quantile([c for c, *_ in samples], np.arange(1, 15) / 15, method="inverted_cdf")
    return {
        "accuracy": np.mean([a for _, a, _ in samples]),
        "balanced_accuracy": np.mean(recalls),
        "macro_f1": np.mean(f1),
        **({"top5_accuracy": np.mean(among)} if logits.shape[1] > 5 else {}),
        "nll": nll / len(y),
        "brier": brier / len(y),
        "ece": ece(np.arange(1, 15) / 15),
        "adaptive_ece": ece(quantiles),
    }


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_classes_equal_numpy(dtype):
    logits, y = draw(500, 7).to(dtype), torch.randint(7, (500,), generator=torch.Generator().manual_seed(1))
    expected = numpy_measures(logits.double().numpy(), y.numpy())
    assert measures(logits, y, "classes") == pytest.approx(expected, abs=1e-6)


def test_classes_equal_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics", reason="skipped the comparison with scikit-learn: not installed")
    logits, y = draw(300, 4, seed=2).double(), torch.randint(4, (300,), generator=torch.Generator().manual_seed(3))
    y[y == 3] = 2  # a class without samples
    found, p = measures(logits, y, "classes"), logits.softmax(-1).numpy()
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(y, logits.argmax(-1)))
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        balanced = metrics.balanced_accuracy_score(y, logits.argmax(-1))
    assert found["balanced_accuracy"] == pytest.approx(balanced)
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(y, logits.argmax(-1), average="macro"))
    assert confusion(logits, y).tolist() == metrics.confusion_matrix(y, logits.argmax(-1), labels=range(4)).tolist()
    many, of = draw(200, 9, seed=8).double(), torch.randint(9, (200,), generator=torch.Generator().manual_seed(9))
    top = metrics.top_k_accuracy_score(of, many, k=5, labels=range(9))
    assert measures(many, of, "classes")["top5_accuracy"] == pytest.approx(top)
    assert found["nll"] == pytest.approx(metrics.log_loss(y, p, labels=range(4)))
    assert found["brier"] == pytest.approx(metrics.mean_squared_error(F.one_hot(y, 4), p) * 4)


@pytest.mark.parametrize("step", [0.0, 0.5])  # 0.5: many scores are equal
def test_rankings_equal_scikit_learn(step):
    metrics = pytest.importorskip("sklearn.metrics", reason="skipped the comparison with scikit-learn: not installed")
    logits = draw(300, 5, seed=4)
    logits = logits if step == 0 else (logits / step).round() * step
    y = (logits + draw(300, 5, seed=5) > 1).long()
    expected = metrics.average_precision_score(y, logits, average=None)
    assert average_precision(logits.T, y.T > 0).tolist() == pytest.approx(expected.tolist())
    assert measures(logits, y.float(), "multilabel")["map"] == pytest.approx(expected.mean())
    two = logits[:, :2]
    expected = metrics.roc_auc_score(y[:, 0], (two[:, 1] - two[:, 0]).numpy())
    assert measures(two, y[:, 0], "classes")["auroc"] == pytest.approx(expected)


def test_classes_by_hand():
    # softmax = (3/4, 1/4) twice and (1/4, 3/4) once; the first and the third are right
    logits = torch.tensor([[log(3), 0.0], [log(3), 0.0], [0.0, log(3)]])
    found = measures(logits, torch.tensor([0, 1, 1]), "classes")
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["nll"] == pytest.approx((2 * log(4 / 3) + log(4)) / 3)
    assert found["ece"] == pytest.approx(3 / 4 - 2 / 3)  # one bin: confidence 3/4, accuracy 2/3
    assert found["balanced_accuracy"] == pytest.approx((1 + 1 / 2) / 2)
    assert found["brier"] == pytest.approx((2 * 2 * (1 / 4) ** 2 + 2 * (3 / 4) ** 2) / 3)
    # z_1 - z_0 is -log 3, -log 3, log 3 for a negative and two positives: of two pairs one is a tie
    assert found["auroc"] == pytest.approx((1 / 2 + 1) / 2)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 2 / 3) / 2)  # one of each right, one 1 taken for a 0
    assert list(found) == ["accuracy", "balanced_accuracy", "macro_f1", "nll", "brier", "ece", "adaptive_ece", "auroc"]


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


def test_bins_of_equal_mass():
    # of 4 samples in 2 bins the first ends with the second smallest
    confidence = torch.tensor([0.9, 0.8, 0.6, 0.7], dtype=torch.float64)
    right = torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    edges = equal_mass(confidence, 2)
    assert edges.tolist() == [0.7]
    # (0.6, 0.7]: accuracy 1/2, confidence 0.65; (0.8, 0.9]: 1 and 0.85
    assert calibration_error(confidence, right, edges) == pytest.approx((0.15 + 0.15) / 2)
    # what is equal stays together, in whatever order it comes: one bin of all
    equal = torch.full((4,), 0.75, dtype=torch.float64)
    assert calibration_error(equal, right, equal_mass(equal, 2)) == pytest.approx(0)
    # fewer samples than bins: each has one
    assert calibration_error(confidence, right, equal_mass(confidence, 15)) == pytest.approx(
        (0.1 + 0.2 + 0.6 + 0.3) / 4
    )


def test_bins_of_equal_mass_hold_every_sample_once():
    """And differ by one sample at most, where no confidences are equal; the least confident sample is in the first."""
    for bins in (2, 3, 15):
        for samples in range(1, 47):
            confidence = draw(samples, seed=samples).sigmoid().double()
            counts, sure, _ = binned(confidence, torch.zeros_like(confidence), equal_mass(confidence, bins))
            assert counts.sum() == samples and counts.max() - counts.min() <= 1
            assert sure.sum().item() == pytest.approx(confidence.sum().item())
    # 1/2 and 1 of two samples, both right: (1 - 1/2) / 2; without the least confident one it would be 0
    two = torch.tensor([0.5, 1.0], dtype=torch.float64)
    assert calibration_error(two, torch.ones(2, dtype=torch.float64), equal_mass(two, 2)) == pytest.approx(1 / 4)


def test_groups_by_hand():
    y = torch.tensor([0, 0, 1, 1, 2, 3, 4])
    right = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    found = class_accuracy(right, y, 6)
    assert found[:5].tolist() == [0.5, 1, 1, 0, 0] and found[5].isnan()
    counts = torch.tensor([101, 5000, 100, 20, 19, 0])  # the last class is not tested
    expected = {"many_accuracy": 3 / 4, "medium_accuracy": 1 / 2, "few_accuracy": 0.0}
    assert group_accuracy(found, counts) == expected
    assert group_accuracy(found[:2], counts[:2]) == {"many_accuracy": 3 / 4}


def test_temperature_by_hand():
    # margins are 2 log 3, and three of four samples are right: sigmoid(2 log 3 / T) = 3/4 at T = 2
    logits = torch.tensor([[0.0, 2 * log(3)]] * 4)
    assert temperature(logits, torch.tensor([1, 1, 1, 0])) == pytest.approx(2)
    # all right: the smaller the better; one of four right: the larger; nothing to scale
    assert temperature(logits, torch.tensor([1, 1, 1, 1])) == 0.01
    assert temperature(logits, torch.tensor([1, 0, 0, 0])) == 100
    assert temperature(logits * 0, torch.tensor([1, 0, 0, 0])) == 1
    assert np.isnan(temperature(logits * float("nan"), torch.tensor([1, 0, 0, 0])))


@pytest.mark.parametrize("factor", [0.05, 1.0, 30.0])
def test_temperature_equals_a_search(factor, monkeypatch):
    from scipy.optimize import minimize_scalar

    logits = draw(400, 6, seed=6).double()
    y = torch.multinomial(logits.softmax(-1), 1, generator=torch.Generator().manual_seed(7)).squeeze(-1)
    scaled = (factor * logits).numpy()

    def nll(t):
        z = scaled / t
        return np.mean(np.log(np.exp(z - z.max(1, keepdims=True)).sum(1)) + z.max(1) - z[np.arange(400), y.numpy()])

    best = minimize_scalar(nll, bounds=(factor / 5, factor * 5), method="bounded", options={"xatol": 1e-9 * factor})
    found = temperature(torch.from_numpy(scaled), y)
    assert found == pytest.approx(best.x, rel=1e-6)
    monkeypatch.setattr("runner.core.measure.CHUNK", 50)  # eight samples at a time
    assert temperature(torch.from_numpy(scaled), y) == pytest.approx(found, rel=1e-9)


def test_what_the_samples_do_not_define_is_nan():
    logits = draw(5, 2)
    assert np.isnan(measures(logits, torch.ones(5, dtype=torch.int64), "classes")["auroc"])
    assert np.isnan(auroc(logits[:, 0], torch.zeros(5, dtype=torch.bool)))
    assert np.isnan(measures(logits, torch.zeros(5, 2), "multilabel")["map"])


def test_classes_at_extreme_logits():
    found = measures(torch.tensor([[1e4, -1e4], [1e4, -1e4]]), torch.tensor([0, 1]), "classes")
    same = {"accuracy": 0.5, "balanced_accuracy": 0.5, "macro_f1": 1 / 3, "ece": 0.5, "adaptive_ece": 0.5, "auroc": 0.5}
    assert found == pytest.approx({**same, "nll": 1e4, "brier": 1.0})


def test_multilabel_by_hand():
    # sigmoid = 3/4 or 1/4; of the four labels three are on the right side, and the first sample has both
    logits = torch.tensor([[log(3), -log(3)], [log(3), log(3)]])
    found = measures(logits, torch.tensor([[1.0, 0.0], [1.0, 0.0]]), "multilabel")
    expected = {"accuracy": 3 / 4, "exact": 1 / 2, "nll": (3 * log(4 / 3) + log(4)) / 4}
    # no sample has the second label; the first is every sample's, at any threshold
    assert found == pytest.approx({**expected, "map": 1.0})


def test_multilabel_at_extreme_logits():
    found = measures(torch.tensor([[1e4, 1e4]]), torch.tensor([[1, 0]]), "multilabel")
    assert found == pytest.approx({"accuracy": 0.5, "exact": 0.0, "map": 1.0, "nll": 5e3})


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
