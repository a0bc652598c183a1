"""What probabilities each loss defines, and what a run of one that defines none says."""

import json

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax

from runner.core.batch import Output
from runner.core.measure import OF_PROBABILITIES, measures
from runner.engine.result import summary
from runner.engine.run import run
from runner.loss.mse import Square
from runner.record.files import finished
from tests.loss.made import FEATURES, OPTIONS, batch, kinds, logits, reference
from tests.loss.test_loss import make, targets
from tests.tiny import compose, trainer

masses = reference("evidential").masses


def stable(z):
    """The definition of stablemax: s(x) = x + 1 from 0 on, 1 / (1 - x) below."""
    s = np.where(z >= 0, z + 1, 1 / (1 - np.minimum(z, 0)))
    return s / s.sum(-1, keepdims=True)


def dirichlet(z):
    """The mean of the Dirichlet distribution, of the masses of all subsets of the classes (Fan et al., equation 5)."""
    found = []
    for row in z:
        mass, classes = masses(row), len(row)
        belief = np.array([mass[frozenset([c])] for c in range(classes)])
        alpha = classes * belief / (1 - belief.sum() + 1e-6) + 1
        found.append(alpha / alpha.sum())
    return np.array(found)


SOFTMAX = (softmax, "p = softmax(z) is in the formula")
MARGIN = (None, "training takes a margin from the label's cosine that evaluation, without a label, has not")
OWN = {
    **dict.fromkeys(["ce", "focal", "poly", "poly_focal", "asl", "comp_sum", "gce", "mae", "squentropy"], SOFTMAX),
    **dict.fromkeys(["dual_focal", "encouraging", "elr", "anyloss", "easyllp", "aggregate_response"], SOFTMAX),
    "ldr_kl": (softmax, "at lam = 1 it is cross-entropy with a margin of 0.1 nats"),
    "aldr_kl": (softmax, "LDR-KL whose temperatures are near lam = 1 on average"),
    "logit_adjustment": (softmax, "of a balanced distribution of the classes, for which the paper is"),
    "vs": (None, "with gamma > 0 the logits are scaled by class in training alone"),
    "legendretron": (softmax, "its head gives log-probabilities"),
    "stablemax": (stable, "s(z) over its sum"),
    "evidential": (dirichlet, "the mean of Dir(alpha), whose logarithm is its first term"),
    "mse": (None, "scores near 0 and M"),
    "z_loss_spherical": (None, "scale and shift of the logits mean nothing"),
    "ensloss": (None, "a random loss of the margin"),
    **dict.fromkeys(["ldam", "adaface", "elasticface", "elasticface_cos"], MARGIN),
    "asl_multilabel": (expit, "p = sigmoid(z) is in the formula"),
}
TASKS = [option for option in OPTIONS if kinds(option)[0] not in ("real", "reals")]
SETTINGS = [
    *(("ldr_kl", {"scaling": scaling}, False) for scaling in ("l1", "softplus")),
    *(("aldr_kl", {"scaling": scaling}, False) for scaling in ("l1", "softplus")),
    *((option, {"lam": 0.5}, False) for option in ("ldr_kl", "aldr_kl")),
    ("vs", {"gamma": 0.0}, True),
    ("ldam", {"max_m": 0.0}, True),
    ("adaface", {"m": 0.0}, True),
    ("elasticface", {"m": 0.0, "sigma": 0.0}, True),
    ("elasticface", {"m": 0.0}, False),
]


@pytest.mark.parametrize("option", sorted(set(TASKS)))
def test_the_probabilities_of_every_loss(option):
    own, _ = OWN[option]
    loss, z = make(option), logits(option, kinds(option)[0], seed=11)
    assert loss.probabilities == (own is not None)
    found = loss.log_probabilities(z).detach()
    assert (found.argsort(-1) == z.argsort(-1)).all()
    if own is not None:
        made = expit(found.numpy()) if own is expit else softmax(found.numpy(), -1)
        want = own(z.numpy()) if own in (stable, dirichlet, expit) else own(z.numpy(), -1)
        np.testing.assert_allclose(made, want, rtol=1e-9)
    for size in (30.0, 1e4):
        assert torch.isfinite(make(option).float().log_probabilities(size * z.float())).all()


@pytest.mark.parametrize(("option", "setting", "probabilities"), SETTINGS)
def test_settings_that_decide_it(option, setting, probabilities):
    assert make(option, **setting).probabilities == probabilities


@pytest.mark.parametrize("option", ["ce", "squentropy", "stablemax"])
def test_the_own_probability_is_what_is_trained(option):
    """-log p of the label is the loss, but for squentropy's second term."""
    loss, z, y = make(option), logits(option, "ids"), targets(option, "ids")
    nll = torch.nn.functional.nll_loss(loss.log_probabilities(z).log_softmax(-1), y, reduction="none")
    rest = reference(option).reference(z.numpy(), y.numpy()) - nll.numpy()
    assert np.allclose(rest, 0) == (option != "squentropy")
    torch.testing.assert_close(loss(Output(z, FEATURES), batch(y)) - nll, torch.from_numpy(rest))


def test_a_run_is_measured_by_the_own_probabilities():
    """stablemax by its definition, from the model's outputs: 0.333 after the default run, where softmax gives 0.154."""
    run = trainer("dataset.subset=200", "loss=stablemax", "model.hidden=[16]", "optim.lr=0.1")
    for epoch in range(2):
        for part in run.loader.epoch(epoch):
            run.step(part)
    part = next(run.loader.evaluate(run.dataset.test, 1000))
    with torch.no_grad():
        p = stable(run.model.eval()(part.x).logits.double().numpy())
    y, found = part.y.numpy(), run.evaluate(run.dataset.test)
    assert found["nll"] == pytest.approx(-np.log(p[np.arange(len(y)), y]).mean(), rel=1e-5)
    assert found["brier"] == pytest.approx(((p - np.eye(10)[y]) ** 2).sum(1).mean(), rel=1e-5)
    assert found["accuracy"] == (p.argmax(1) == y).mean()


@pytest.mark.slow
def test_the_default_run_of_stablemax(tmp_path):
    result = run(compose("loss=stablemax", f"outputs_dir={tmp_path}"), [], say=lambda *_: None)
    assert result["last"]["test_nll"] == pytest.approx(0.333, abs=0.02)


@pytest.mark.parametrize("words", [[], ["dataset.val=0"]], ids=["with validation", "without"])
def test_a_run_without_probabilities_says_so(words, tmp_path):
    small = ["train.epochs=2", "model.hidden=[8]", "dataset.subset=100", f"outputs_dir={tmp_path}", *words]
    said = []
    result = run(compose("loss=mse", *small), [], say=said.append)
    (folder,) = (path.parent for path in tmp_path.glob("*/*/result.json"))
    assert finished(folder) == json.loads(json.dumps(result))
    line = result["last"]
    assert all(line[f"test_{key}"] is None for key in OF_PROBABILITIES) and 0 < line["test_accuracy"] < 1
    (notice,) = (notice for notice in result["notices"] if "loss=mse defines no probabilities" in notice)
    assert ("after temperature scaling" in notice) == (not words) and any(notice in text for text in said)
    assert all(np.isfinite(line[f"test_scaled_{key}"]) for key in OF_PROBABILITIES) if not words else True
    assert "nll" not in summary(result) and "test_accuracy" in summary(result)
    assert (folder / "curves.png").exists() and (folder / "classes.png").exists()
    assert (folder / "reliability.png").exists() == (not words)


def test_what_is_predicted_is_of_the_logits():
    """Where beliefs are so small that alpha is 1 for every class in fp32, its order is gone, and that of z is not."""
    z = -40 + torch.arange(50.0).reshape(10, 5).sin()
    found = measures(z, z.argmax(1), "classes", make("evidential").float())
    assert found["accuracy"] == 1 and found["nll"] == pytest.approx(np.log(5))


# ---- logits without a softmax


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("classes", [2, 5])
def test_measures_of_logits_that_are_not_finite_are_nan(bad, classes):
    z = torch.randn(40, classes)
    y, z[7, 1] = torch.arange(40) % classes, bad
    found = measures(z, y, "classes")
    assert all(np.isnan(value) for value in found.values()), found
    assert all(np.isnan(value) for value in measures(z, (z > 0).float(), "multilabel").values())
    assert all(not np.isfinite(value) for value in measures(z, torch.zeros_like(z), "regression").values())
    z[7] = -torch.inf
    assert np.isnan(measures(z, y, "classes")["accuracy"])
    z[7, 0] = 0.0  # the logarithm of (1, 0, ..)
    assert measures(z, 0 * y, "classes")["accuracy"] == pytest.approx((z.argmax(1) == 0).double().mean().item())


def test_without_probabilities_what_needs_them_is_none():
    z, y = torch.randn(20, 2), torch.arange(20) % 2
    plain, scores = (measures(z, y, "classes", loss) for loss in (None, Square()))
    assert list(plain) == list(scores)
    assert {key: value for key, value in scores.items() if value is not None} == {
        key: plain[key] for key in ("accuracy", "balanced_accuracy", "macro_f1", "auroc")
    }
