"""The penalty on the log-partition function against its formula."""

from math import log

import pytest
import torch
from torch.func import vmap
from torch.nn import functional as F

from runner.core.batch import Batch, Output
from runner.hook.logit_z import LogitZ
from tests.tiny import SMALL, compose, trainer


def penalty(hook, logits):
    rows = len(logits)
    return hook.loss(None, Output(logits, logits), Batch(torch.zeros(rows, 1), torch.zeros(rows), torch.arange(rows)))


def test_by_hand():
    """Z = 1 + 2 + 3 = 6 and 1/2 + 1/4 + 1/4 = 1: 1/2 (ln 6)^2 * 0.5 = 0.8025993..."""
    logits = torch.tensor([[0, log(2), log(3)], [log(0.5), log(0.25), log(0.25)]], dtype=torch.float64)
    value = penalty(LogitZ(0.5), logits)
    assert value.shape == ()
    assert value.item() == pytest.approx(0.5 * (1.791759469228055**2 + 0) / 2, rel=1e-14)


def test_it_moves_the_logits_and_not_their_softmax():
    """d/dz = 2 c log Z p / B; with cross-entropy it takes a common shift away, which cross-entropy cannot see."""
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(penalty(LogitZ(0.3), logits), logits)
    expected = 2 * 0.3 * logits.logsumexp(-1, keepdim=True) * logits.softmax(-1) / 4
    torch.testing.assert_close(gradient, expected)
    shifted = logits - logits.logsumexp(-1, keepdim=True)
    assert penalty(LogitZ(), shifted).item() == pytest.approx(0, abs=1e-25)
    torch.testing.assert_close(shifted.softmax(-1), logits.softmax(-1))


def test_finite_and_wide_in_half_precision():
    logits = torch.full((2, 3), 65504.0, dtype=torch.float16, requires_grad=True)
    value = penalty(LogitZ(), logits)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(1e-4 * (65504 + log(3)) ** 2, rel=1e-6)
    assert torch.isfinite(torch.autograd.grad(value, logits)[0]).all()


def test_the_gradient_of_a_run_is_that_of_loss_and_penalty():
    run = trainer(*SMALL, "hook=logit_z", "hook.logit_z.coefficient=0.7", double=True)
    batch = next(run.loader.epoch(0, 0))
    run.gradient(batch)
    logits = run.model(batch.x).logits
    value = F.cross_entropy(logits, batch.y) + 0.7 * torch.log(torch.exp(logits).sum(-1)).pow(2).mean()
    expected = torch.autograd.grad(value, run.weights.parameters)
    for (name, found), part in zip(run.weights.views(run.weights.grad), expected, strict=True):
        torch.testing.assert_close(found, part, rtol=1e-10, atol=1e-14, msg=name)


def test_replicas_with_coefficients_of_their_own():
    hook, logits = LogitZ(), torch.randn(3, 5, 4, dtype=torch.float64)

    def one(coefficient, z):
        hook.coefficient = coefficient
        return penalty(hook, z)

    values = vmap(one)(torch.tensor([0.0, 0.1, 2.0], dtype=torch.float64), logits)
    expected = [penalty(LogitZ(coefficient), z) for coefficient, z in zip((0.0, 0.1, 2.0), logits, strict=True)]
    torch.testing.assert_close(values, torch.stack(expected))


def test_the_option_has_palms_coefficient():
    assert compose("hook=logit_z")["hook"]["logit_z"]["coefficient"] == 1e-4
