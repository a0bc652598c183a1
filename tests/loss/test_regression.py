"""Losses of regression: points worked out by hand, what reaches the features, and a table learned."""

import importlib.util
from math import exp, log, log2

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from runner.core.batch import Batch, Output
from runner.core.measure import measures
from runner.core.mistake import ConfigError
from runner.loss.absolute import AbsoluteError
from runner.loss.conr import ConR
from runner.loss.cs_ib import CSIB
from runner.loss.gaussian_nll import GaussianNLL
from runner.loss.huber import Huber
from runner.loss.quantile import Quantile
from runner.loss.squared import SquaredError
from tests.conftest import ROOT
from tests.tiny import trainer


def reference(option):
    path = ROOT / "tests" / "reference" / f"loss_{option}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.reference


def value(loss, z, y, features, x=None):
    x = torch.zeros(len(y), 2, dtype=torch.float64) if x is None else x
    return loss(Output(z.unsqueeze(-1), features), Batch(x, y, torch.arange(len(y))))


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def finite_differences(function, at, gradient):
    for place in np.ndindex(*at.shape):
        sides = []
        for sign in (1, -1):
            moved = at.detach().clone()
            moved[place] += sign * 1e-6
            sides.append(function(moved).item())
        assert gradient[place].item() == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-5, abs=1e-8)


# ---- the ordinary ones


def test_ordinary_losses_equal_torchs_and_scikit_learns():
    """Values and gradients, of one target a sample and of three; scikit-learn has no gradient."""
    metrics = pytest.importorskip("sklearn.metrics", reason="skipped: scikit-learn is not installed")
    y, features = 2 * draw(9, 3), draw(9, 4)
    pairs = [
        (SquaredError(), lambda z: F.mse_loss(z, y, reduction="none")),
        (AbsoluteError(), lambda z: F.l1_loss(z, y, reduction="none")),
        (Huber(0.7), lambda z: F.huber_loss(z, y, reduction="none", delta=0.7)),
        (Quantile(0.5), lambda z: F.l1_loss(z, y, reduction="none") / 2),
    ]
    for loss, theirs in pairs:
        z = draw(9, 3, seed=1).requires_grad_()
        found = loss(Output(z, features), Batch(y, y, torch.arange(9)))
        torch.testing.assert_close(found, theirs(z).mean(-1))
        torch.testing.assert_close(*(torch.autograd.grad(one.sum(), z)[0] for one in (found, theirs(z).mean(-1))))
        alone = loss(Output(z[:, :1], features), Batch(y, y[:, 0], torch.arange(9)))
        torch.testing.assert_close(alone, theirs(z)[:, 0])
    z = draw(9, 3, seed=1)
    for level in (0.1, 0.5, 0.95):
        found = Quantile(level)(Output(z, features), Batch(y, y, torch.arange(9))).mean().item()
        assert found == pytest.approx(metrics.mean_pinball_loss(y, z, alpha=level))


def test_the_gaussian_likelihood_equals_torchs():
    """Through the loss's own layer, values and the gradients of outputs, features and layer."""
    y, z, features = 2 * draw(9, 3), draw(9, 3, seed=1).requires_grad_(), draw(9, 4, seed=2).requires_grad_()
    loss = GaussianNLL(classes=3, features=4).double()
    out = loss.head(Output(z, features))
    assert out.logits.shape == (9, 6) and torch.equal(out.logits[:, :3], z)
    found = loss(out, Batch(y, y, torch.arange(9)))
    variance = F.softplus(features @ loss.spread.weight.T + loss.spread.bias) + 1e-6
    theirs = F.gaussian_nll_loss(z, y, variance, full=True, reduction="none").mean(-1)
    torch.testing.assert_close(found, theirs)
    leaves = [z, features, *loss.parameters()]
    for ours, other in zip(*(torch.autograd.grad(one.sum(), leaves) for one in (found, theirs)), strict=True):
        torch.testing.assert_close(ours, other)
    measured = measures(out.logits.detach(), y, "regression", loss)
    assert measured["nll"] == pytest.approx(found.mean().item())
    assert measured["rmse"] == pytest.approx(F.mse_loss(z, y).sqrt().item())
    assert measures(z.detach(), y, "regression", SquaredError()).keys() == {"mae", "rmse"}


def test_one_output_for_every_target():
    with pytest.raises(ValueError, match="2 outputs a sample for 3 targets"):
        SquaredError()(Output(draw(4, 2), draw(4, 2)), Batch(draw(4, 2), draw(4, 3), torch.arange(4)))


@pytest.mark.parametrize("option", ["squared", "absolute", "huber", "quantile", "gaussian_nll"])
def test_an_ordinary_loss_learns_a_table(option):
    run = trainer("dataset=diabetes", "model=mlp", "model.hidden=[16]", "train.batch_size=64", f"loss={option}")
    before = run.evaluate(run.dataset.test)
    for epoch in range(15):
        for batch in run.loader.epoch(epoch):
            run.step(batch)
    found = run.evaluate(run.dataset.test)
    assert found["rmse"] < 0.85  # the mean has 1
    assert ("nll" in found) == (option == "gaussian_nll") and all(found[key] < before[key] for key in found)


def test_a_quantile_is_one():
    """Of the training targets a tenth is above the outputs, which the bias alone can bring about."""
    words = [
        "dataset=diabetes",
        "model=mlp",
        "model.hidden=[]",
        "train.batch_size=64",
        "loss=quantile",
        "loss.level=0.9",
    ]
    run = trainer(*words, "optim.lr=0.05")
    for epoch in range(40):
        for batch in run.loader.epoch(epoch):
            run.step(batch)
    z, y = run.predict(run.dataset.train)
    assert (y <= z[:, 0]).double().mean().item() == pytest.approx(0.9, abs=0.04)


@pytest.mark.parametrize(
    ("words", "fitting", "not_"),
    [
        (["dataset=diabetes", "loss=ce"], ["absolute", "conr", "gaussian_nll", "huber", "squared"], "asl"),
        (["dataset=multi_digits", "loss=ce"], ["asl_multilabel"], "poly"),
        (["dataset=digits", "loss=huber"], ["ce", "mse", "focal", "aggregate_response"], "squared"),
    ],
)
def test_a_refused_loss_is_told_with_those_that_fit(words, fitting, not_):
    with pytest.raises(ConfigError, match="is defined for .*; for that there are loss=") as error:
        trainer(*words)
    told = str(error.value).rpartition("loss=")[2].split(", ")
    assert set(fitting) <= set(told) and not_ not in told


# ---- ConR


def test_conr_by_hand():
    """Labels 0, 1/2, 5, 9 and outputs 0, 1, 0, 9 with a window of 1: 0 and 1 are near, and both are confused with 2; 2
    has no positive and 3 nothing at all. Features along the axes, 0 with 1: with temperature 1 and e = ln 2 / 5, the
    negative of 0 counts 2 e^0 and that of 1 counts 2^(4.5/5) e^0."""
    y = torch.tensor([0.0, 0.5, 5.0, 9.0], dtype=torch.float64)
    z = torch.tensor([0.0, 1.0, 0.0, 9.0], dtype=torch.float64)
    features = torch.tensor([[2.0, 0.0], [3.0, 0.0], [0.0, 1.0], [0.0, 7.0]], dtype=torch.float64)
    loss = value(ConR(3.0, 1.0, 1.0, log(2) / 5), z, y, features)
    first, second = -log(exp(1) / (exp(1) + 2)), -log(exp(1) / (exp(1) + 2**0.9))
    np.testing.assert_allclose(loss.numpy(), [3 * first, 0.5 + 3 * second, 5.0, 0.0], rtol=1e-12)


def test_conr_without_its_weight_is_the_absolute_error():
    y, z = draw(8), draw(8, seed=1)
    torch.testing.assert_close(value(ConR(0.0), z, y, draw(8, 3, seed=2)), (y - z).abs())


def test_what_conr_pulls_is_the_features():
    y, z, features = 2 * draw(12), 2 * draw(12, seed=1), draw(12, 3, seed=2).requires_grad_()

    def total(f):
        return torch.from_numpy(reference("conr")(z.numpy()[:, None], y.numpy(), f.detach().numpy())).sum()

    loss = value(ConR(), z, y, features)
    assert (loss > (y - z).abs() + 0.1).any()
    (gradient,) = torch.autograd.grad(loss.sum(), features)
    finite_differences(total, features, gradient)
    assert gradient.abs().max() > 0.1


def test_conr_of_far_labels_and_dead_features_is_finite():
    y, z = torch.tensor([0.0, 0.1, 6e4, -6e4]), torch.zeros(4)
    features = torch.zeros(4, 3, requires_grad=True)
    loss = value(ConR(e=1.0), z, y, features)
    (gradient,) = torch.autograd.grad(loss.sum(), features)
    assert torch.isfinite(loss).all() and torch.isfinite(gradient).all()
    alone = value(ConR(), torch.zeros(1), torch.ones(1), torch.ones(1, 3))
    assert alone.tolist() == [1.0]


# ---- CS-IB


def test_cs_ib_by_hand():
    """Two samples with one input (K = 1 everywhere), targets 0 and 1, outputs both 0, sigma^2 = 1 / (2 ln 2), so that a
    distance of 1 counts 1/2: S(yy) = 2 (1 + 1/2) / 4 = 3/4, S(zz) = 1, S(zy) = 3/4; factors cancel."""
    y, z = torch.tensor([0.0, 1.0], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    loss = value(CSIB(0.0, (2 * log(2)) ** -0.5), z, y, z[:, None])
    np.testing.assert_allclose(loss.numpy(), [log2(1.5) + log2(2) - 2 * log2(1.5)] * 2, rtol=1e-12)


def test_cs_ib_divides_by_the_square_of_the_sum():
    """Where every input is alike a slip in the normaliser cancels; here none is. The numbers are those of Proposition 1
    worked out apart from this project; with the authors' sum of squares the value is 0.535072."""
    x, y = torch.tensor([[0.0], [0.5], [1.0], [3.0]]).double(), torch.tensor([0.0, 1.0, 2.0, -1.0]).double()
    z = torch.tensor([0.2, 0.7, 1.0, 0.0], dtype=torch.float64, requires_grad=True)
    loss = value(CSIB(0.0, 1.0), z, y, x, x)
    np.testing.assert_allclose(loss.detach().numpy(), [0.727147] * 4, atol=5e-7)
    (gradient,) = torch.autograd.grad(loss.mean(), z)
    np.testing.assert_allclose(gradient.numpy(), [-0.0191, -0.1292, -0.2601, 0.9383], atol=5e-5)


def test_cs_ib_with_inputs_that_differ():
    """All of the definition, both estimators, against its matrices."""
    y, z, features, x = draw(9), draw(9, seed=1), draw(9, 4, seed=2), draw(9, 3, 2, seed=3)
    for setting in ({}, {"beta": 2.0}, {"beta": 1.0, "sigma": 3.0}):
        expected = reference("cs_ib")(z.numpy()[:, None], y.numpy(), features.numpy(), x.flatten(1).numpy(), **setting)
        np.testing.assert_allclose(value(CSIB(**setting), z, y, features, x).numpy(), expected, rtol=1e-10)


def test_cs_ib_is_zero_at_the_targets_and_the_information_one_of_a_copy():
    y, x = draw(9), draw(9, 3)
    loss = value(CSIB(0.0), y, y, draw(9, 2), x)
    np.testing.assert_allclose(loss.numpy(), 0, atol=1e-12)
    loss = value(CSIB(0.25), y, y, x, x)  # I(x; x) / sqrt(I(x; x) I(x; x)) = 1
    np.testing.assert_allclose(loss.numpy(), 0.25, rtol=1e-10)


def test_the_gradients_of_cs_ib():
    y, z, features, x = draw(5), draw(5, seed=1), draw(5, 2, seed=2), draw(5, 3, seed=3)
    assert torch.autograd.gradcheck(
        lambda z, f: value(CSIB(0.5), z, y, f, x)[0], (z.requires_grad_(), features.requires_grad_())
    )


def test_cs_ib_without_information_is_finite():
    for features in (torch.zeros(4, 3), 1e4 * torch.eye(4, 3)):
        features.requires_grad_()
        loss = value(CSIB(1.0), torch.randn(4), torch.randn(4), features, torch.randn(4, 2))
        (gradient,) = torch.autograd.grad(loss.sum(), features)
        assert torch.isfinite(loss).all() and torch.isfinite(gradient).all()


# ---- a run


@pytest.mark.parametrize("words", [["loss=conr", "loss.window=0.2"], ["loss=cs_ib", "loss.beta=0.001", "loss.sigma=2"]])
def test_a_table_is_learned(words):
    run = trainer("dataset=diabetes", "model=mlp", "model.hidden=[16]", "train.batch_size=64", "optim.lr=0.01", *words)
    for epoch in range(30):
        for batch in run.loader.epoch(epoch):
            run.step(batch)
    assert run.evaluate(run.dataset.test)["rmse"] < 0.85  # the mean has 1
