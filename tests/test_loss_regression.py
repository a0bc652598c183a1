"""Losses of regression: points worked out by hand, what reaches the features, and a table learned."""

import importlib.util
from math import exp, log, log2
from pathlib import Path

import numpy as np
import pytest
import torch

from runner.batch import Batch, Output
from runner.loss.conr import ConR
from runner.loss.cs_ib import CSIB
from tests.tiny import trainer


def reference(option):
    path = Path(__file__).parent / "reference" / f"loss_{option}.py"
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
