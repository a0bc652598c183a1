"""Every loss in fp32 at logits that are far apart, or far from zero and close to each other: value and gradient are
those of its reference to rounding. Where a formula is right on paper, it may still be wrong in floating point.

The references are evaluated in numpy's longdouble, which reaches to e^11356 where it is wider than a double. Not
compared are values beyond the range of fp32, where a loss that grows exponentially is cut off, and cosines beyond 1.
"""

import numpy as np
import pytest
import torch

from runner.core.batch import Output
from runner.loss.aldr_kl import ALDRKL
from runner.loss.ldr_kl import LDRKL, scaled
from tests.loss.made import FEATURES, B, batch, inputs, logits, reference, says, settings
from tests.loss.test_loss import make, targets

WIDE = np.finfo(np.longdouble).maxexp > np.finfo(np.float64).maxexp
SMALL = [[0.0, -1.0, 0.5, -0.25, 2.0], [-1.5, 1.0, 0.25, -0.75, 0.0], [0.5, 0.75, -2.0, 1.0, -0.5]]


def rows(classes, size):
    """Four times (B, classes): all logits high, all low, one high and the others low, one below the others."""
    small = torch.tensor(SMALL * 2)[:B, :classes] + torch.arange(B)[:, None] / 7  # no two samples alike
    one = torch.eye(classes)[0]
    return [small + size * move for move in (torch.ones(classes), -torch.ones(classes), 2 * one - 1, -one)]


def wanted(option, setting, loss, z, y, weight):
    """The reference's values (B,) and the gradient (B, C) of their weighted sum, by central differences."""
    z, step = z.numpy().astype(np.longdouble), np.longdouble(1e-4)
    given = inputs(option, loss, z, y, z)

    def at(move):
        with np.errstate(all="ignore"):
            return reference(option).reference(**given | {"logits": z + move}, **setting)

    gradient = np.zeros(z.shape)
    for c in range(z.shape[1]):
        if not says(option, "COUPLED"):  # all samples at once
            move = step * np.eye(z.shape[1])[c]
            gradient[:, c] = weight * (at(move) - at(-move)) / (2 * step)
            continue
        for i in range(B):
            move = step * np.outer(np.eye(B)[i], np.eye(z.shape[1])[c])
            gradient[i, c] = (weight * (at(move) - at(-move))).sum() / (2 * step)
    return at(0 * z).astype(float), gradient


@pytest.mark.skipif(not WIDE, reason="skipped: longdouble is no wider than double here")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(("option", "setting", "kind"), settings())
def test_far_logits(option, setting, kind):
    loss, y, weight = make(option, **setting).float(), targets(option, kind), torch.linspace(0.5, 1.5, B)
    classes, compared = logits(option, kind).shape[1], 0
    for size in (0.7 * loss.s,) if hasattr(loss, "cosines") else (15.0, 80.0, 5e3):  # up to 1e4 apart
        for z in rows(classes, size):
            z.requires_grad_()
            found = loss(Output(z, FEATURES.float()), batch(y))
            (slope,) = torch.autograd.grad((weight * found).sum(), z)
            values, gradient = wanted(option, setting, loss, z.detach(), y.numpy(), weight.numpy())
            there = np.isfinite(values) & (np.abs(values) < 1e25)
            rounding = 10 * size * 2**-23  # of the logits, over the smallest temperature of the settings
            np.testing.assert_allclose(found.detach().numpy()[there], values[there], rtol=1e-4, atol=1e-3 + rounding)
            if there.all():
                close = {"rtol": 1e-3, "atol": (1e-4 + rounding) * max(1, np.abs(gradient).max())}
                np.testing.assert_allclose(slope.numpy(), gradient, **close)
            compared += there.sum()
    assert compared >= 4 * B


def test_softplus_scaling_of_low_logits():
    """softplus(z) is exp(z) there: (-40, -41) scale to 2 (e, 1) / (e + 1), whatever the number format holds."""
    for low in (-40.0, -90.0, -1000.0):
        f = scaled(torch.tensor([[low, low - 1]]), "softplus")
        np.testing.assert_allclose(f.numpy(), [[1.4621, 0.5379]], atol=5e-5)
    for z in ([3.0, -2.0, 0.5], [-19.9, -20.1, -21.0], [50.0, -50.0, 0.0]):
        f = np.logaddexp(0, np.array(z))
        found = scaled(torch.tensor([z], dtype=torch.float64), "softplus")
        np.testing.assert_allclose(found.numpy()[0], f / f.mean(), rtol=1e-10)


@pytest.mark.parametrize("loss", [LDRKL(10.0, scaling="softplus"), ALDRKL(10.0, scaling="softplus", samples=B)])
def test_low_logits_are_told_apart(loss):
    """A shift of logits that are all low changes nothing, as softplus is exp there."""
    own = batch(torch.tensor([0, 1, 2, 3, 4, 0]))
    losses = []
    for shift in (-40.0, -80.0):
        z = (torch.tensor(SMALL * 2) + shift).requires_grad_()
        losses.append(loss(Output(z, z), own))
        (gradient,) = torch.autograd.grad(losses[-1].sum(), z)
        assert (gradient.abs().amax(1) > 1e-2).all()
    torch.testing.assert_close(*losses)
