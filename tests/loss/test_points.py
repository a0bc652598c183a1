"""Losses at points that are worked out by hand, and against values of other libraries."""

from dataclasses import replace
from math import log

import numpy as np
import pytest
import torch

from runner.core.batch import Output
from runner.loss.aldr_kl import ALDRKL
from runner.loss.asl import Asymmetric, AsymmetricMultilabel
from runner.loss.ce import CrossEntropy
from runner.loss.comp_sum import CompSum
from runner.loss.dual_focal import DualFocal
from runner.loss.elr import ELR
from runner.loss.encouraging import Encouraging
from runner.loss.ensloss import EnsLoss, normal
from runner.loss.evidential import Evidential
from runner.loss.focal import Focal
from runner.loss.ldr_kl import LDRKL
from runner.loss.mse import Square
from runner.loss.poly import Poly
from runner.loss.poly_focal import PolyFocal
from runner.loss.squentropy import Squentropy
from runner.loss.stablemax import StableMax
from runner.loss.z_loss_spherical import SphericalZ
from tests.loss.made import batch, value

HALF = torch.tensor([[log(2), 0, 0], [log(2), 0, 0]], dtype=torch.float64)


POINTS = [
    # -ln(1/2) and -ln(1/4)
    (CrossEntropy(), [0.6931471806, 1.3862943611]),
    # s = 0.3: q = (0.8, 0.1, 0.1) gives 0.8 ln 2 + 0.2 ln 4 = 1.2 ln 2,
    # and q = (0.1, 0.8, 0.1) gives 0.1 ln 2 + 0.9 ln 4 = 1.9 ln 2
    (CrossEntropy(0.3), [0.8317766167, 1.3169796431]),
    # (1/2)^2 ln 2 and (3/4)^2 ln 4 = 0.5625 * 1.3862943611
    (Focal(2.0), [0.1732867951, 0.7797905781]),
    # (1/2)^(1/2) ln 2 = 0.7071067812 * 0.6931471806 and (3/4)^(1/2) ln 4 = 0.8660254038 * 1.3862943611
    (Focal(0.5), [0.4901290717, 1.2005661339]),
    # ln 2 + 2 * 1/2 and ln 4 + 2 * 3/4
    (Poly(2.0), [1.6931471806, 2.8862943611]),
    # s = 0.3: 1.2 ln 2 + 0.8 * 1/2 + 0.2 * 3/4 = + 0.55 and 1.9 ln 2 + 0.1 * 1/2 + 0.9 * 3/4 = + 0.725
    (Poly(1.0, 0.3), [1.3817766167, 2.0419796431]),
    # 0.1732867951 + (1/2)^3 and 0.7797905781 + (3/4)^3 = + 0.421875
    (PolyFocal(1.0, 2.0), [0.2982867951, 1.2016655781]),
    # 1 / p - 1
    (CompSum(0.0), [1.0, 3.0]),
    # (1 - sqrt p) / 0.5 = 2 (1 - 0.7071067812) and 2 (1 - 1/2)
    (CompSum(1.5), [0.5857864376, 1.0]),
    # 1 - p
    (CompSum(2.0), [0.5, 0.75]),
    # ln 1/3 (1 + 2 * 1/2 + 2 * 1/2) and ln 1/3 (2 * 2 + 1 + 2 * 1) = ln 7/3, 2 being exp of the margin
    (LDRKL(1.0, log(2)), [0.0, 0.8472978604]),
    # 1/2 ln 1/3 (1 + (1/2)^2 + (1/2)^2) = 1/2 ln 1/2 and 1/2 ln 1/3 (2^2 + 1 + 1) = 1/2 ln 2
    (LDRKL(0.5, 0.0), [-0.3465735903, 0.3465735903]),
    # ln 2 + 0 and ln 4 + (ln 2)^2 / 2
    (Squentropy(), [0.6931471806, 1.6265208681]),
    # (1 - 1/2 + 1/4)^2 ln 2 and, as no class is below 1/4, (1 - 1/4)^2 ln 4
    (DualFocal(2.0), [0.3898952891, 0.7797905781]),
    # ln 2 + ln 1/2 and ln 4 + ln 3/4
    (Encouraging(0.75), [0.0, 1.0986122887]),
    # ln 2 + ln 4/5 - (1/2 - 1/5) / (4/5) = ln 8/5 - 0.375 and ln 4 + ln 4/5 - (1/4 - 1/5) / (4/5) = ln 16/5 - 0.0625
    (Encouraging(0.2), [0.0950036292, 1.1006508098]),
    # away from the mean: (2/3, -1/3, -1/3) ln 2, of std sqrt(2) / 3 ln 2: ln(1 + exp(-sqrt 2)), ln(1 + exp(sqrt(1/2)))
    (SphericalZ(), [0.2176217216, 1.1079403077]),
    # s = 0.3: 0.8 * 1/2 ln 2 + 2 * 0.1 (1/4)^2 ln 4 and 0.8 * 3/4 ln 4 + 0.1 (1/2)^2 ln 2 + 0.1 (1/4)^2 ln 4
    (Asymmetric(1.0, 2.0, 0.3), [0.2945875517, 0.8577696359]),
    # t = p / 2 at first, <t, p> = 1/2 (1/4 + 1/16 + 1/16) = 0.1875: ln 2 + 2 ln 0.8125 and ln 4 + 2 ln 0.8125
    (ELR(0.5, 2.0, classes=3, samples=2), [0.2778684510, 0.9710156316]),
]


@pytest.mark.parametrize(("loss", "expected"), POINTS, ids=lambda value: getattr(value, "_get_name", str)())
def test_hand_computed(loss, expected):
    torch.testing.assert_close(value(loss, HALF, torch.tensor([0, 1])), torch.tensor(expected, dtype=torch.float64))


def test_square_by_hand():
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    # ((2 - 1)^2 + 0^2 + (-1)^2) / 3
    torch.testing.assert_close(value(Square(), logits, torch.tensor([0])), torch.tensor([2 / 3]))
    # (15 (2 - 30)^2 + 0 + 1) / 3 = (11760 + 1) / 3
    torch.testing.assert_close(value(Square(15.0, 30.0), logits, torch.tensor([0])), torch.tensor([11761 / 3]))


def test_stablemax_by_hand():
    """s(1, 0, -1) = (2, 1, 1/2), of sum 7/2: ln 7/4 and ln 7."""
    logits = torch.tensor([[1.0, 0.0, -1.0]] * 2, dtype=torch.float64)
    torch.testing.assert_close(
        value(StableMax(), logits, torch.tensor([0, 2])), torch.tensor([log(7 / 4), log(7)], dtype=torch.float64)
    )
    zero = torch.zeros(1, 3, requires_grad=True)  # s'(0) = 1 from both sides, s(0) = 1: p - y with p = 1/3
    (gradient,) = torch.autograd.grad(value(StableMax(), zero, torch.tensor([0])), zero)
    torch.testing.assert_close(gradient, torch.tensor([[-2 / 3, 1 / 3, 1 / 3]]))


def test_a_target_of_elr_by_hand():
    """beta = 1/2: t is p / 2 after one step and 3/4 p in the next, <t, p> = 3/4 * 0.375: ln 2 + 2 ln 0.71875."""
    loss = ELR(0.5, 2.0, classes=3, samples=4).double()
    out, y, index = Output(HALF, HALF), torch.tensor([0, 0]), torch.tensor([3, 1])
    loss.observe(out, batch(y, index))
    p = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    torch.testing.assert_close(loss.targets, torch.stack([0 * p, p / 2, 0 * p, p / 2]))
    torch.testing.assert_close(loss(out, batch(y, index)), torch.full((2,), 0.0326638068, dtype=torch.float64))


def test_a_temperature_of_aldr_kl_by_hand():
    """A sure sample: q = (1, 0, 0), KL = ln 3, so t = 2 (1 - 1/4) = 3/2 for lam = 2, alpha = 4, and a = 2 ln 3.

    The label 0: 3/2 ln 1/3 - ln 3 (1/2)^2 = -7/4 ln 3; the label 1: 900 more. A sample with equal logits stays at 2 and
    costs nothing.
    """
    loss = ALDRKL(2.0, 4.0, 0.0, samples=3).double()
    z = torch.tensor([[900.0, 0, 0], [900.0, 0, 0], [1.0, 1, 1]], dtype=torch.float64)
    expected = torch.tensor([-7 / 4 * log(3), 900 - 7 / 4 * log(3), 0], dtype=torch.float64)
    torch.testing.assert_close(value(loss, z, torch.tensor([0, 1, 2])), expected)
    loss.observe(Output(z, z), batch(torch.tensor([0, 1, 2]), torch.tensor([2, 0, 1])))
    torch.testing.assert_close(loss.temperatures, torch.tensor([1.5, 2.0, 1.5], dtype=torch.float64))


def test_asl_multilabel_by_hand():
    """p = 1/2, shift 0.05, exponents 1 and 4: 1/2 ln 2 and -0.45^4 ln 0.55; below the shift a negative is free."""
    logits = torch.tensor([[0.0, 0.0, -9.0]], dtype=torch.float64)
    found = value(AsymmetricMultilabel(1.0), logits, torch.tensor([[1.0, 0.0, 0.0]]))
    torch.testing.assert_close(found, torch.tensor([0.3465735903 + 0.04100625 * 0.5978370008], dtype=torch.float64))


def test_the_focusing_weights_of_asl_have_no_gradient():
    """z = (0, 2), y = (1, 0): -(1/2) (1/2), and m^4 p (1 - p) / (1 - p + 0.05) with p = 0.8808, m = 0.8308."""
    logits, y = torch.tensor([[0.0, 2.0]], dtype=torch.float64, requires_grad=True), torch.tensor([[1.0, 0.0]])
    for stop, slopes in ((True, [[-0.25, 0.2956]]), (False, [[-0.4233, 0.7235]])):
        (found,) = torch.autograd.grad(value(AsymmetricMultilabel(1.0, stop_gradient=stop), logits, y), logits)
        np.testing.assert_allclose(found.numpy(), slopes, atol=5e-5)


def test_evidential_by_hand():
    """Two classes, z = 0: pl = 1/2, I = b_0 = b_1 = 1/4, U = 1/2, alpha = 2 * 1/4 / (1/2) + 1 = 2.

    ln(4 / 2), (1/2 - 3/4)^2 and KL(Dir(1, 2) || Dir(1, 1)) = ln Gamma(3) + psi(2) - psi(3) = ln 2 - 1/2.
    """
    found = value(Evidential(2.0, 0.5, 0), torch.zeros(1, 2, dtype=torch.float64), torch.tensor([0]))
    assert found.item() == pytest.approx(log(2) + 2 / 16 + (log(2) - 1 / 2) / 2, rel=2e-6)  # 1e-6 is added to U


def test_evidential_begins_with_cross_entropy():
    """Of each class against the rest, its mean: ln 2 at z = 0, in the epochs before `begin`."""
    loss, z, y = Evidential(begin=3), torch.zeros(1, 4, dtype=torch.float64), torch.tensor([1])
    found = [loss(Output(z, z), replace(batch(y), epoch=epoch)).item() for epoch in range(5)]
    assert found[0] == found[1] == found[2] == pytest.approx(found[3] + log(2)) and found[3] == found[4]


def test_ensloss_by_hand():
    """n = (-ln 2, 0, ln 4): h = (1/2, 1, 4), slopes -1, -1 (for -4) and -1/2; margins 2, -1 and 1/2.

    By rank the margin -1 has the slope -1, 1/2 has -1, and 2 has -1/2, which is divided by 2; 1e-6 is subtracted.
    """
    loss = EnsLoss(classes=2, samples=3).double()
    loss.draws.copy_(torch.tensor([-log(2), 0.0, log(4)]))
    z = torch.tensor([[0.0, 2.0], [0.0, -1.0], [1.0, 0.5]], dtype=torch.float64, requires_grad=True)
    found = value(loss, z, torch.tensor([1, 1, 0]))
    slopes = torch.tensor([-0.250001, -1.000001, -1.000001], dtype=torch.float64)
    torch.testing.assert_close(found, slopes * torch.tensor([2.0, -1.0, 0.5]), atol=1e-7, rtol=0)
    (gradient,) = torch.autograd.grad(found.sum(), z)
    sign = torch.tensor([[-1.0, 1.0], [-1.0, 1.0], [1.0, -1.0]])
    torch.testing.assert_close(gradient, slopes[:, None] * sign, atol=1e-7, rtol=0)


def test_what_ensloss_draws_is_normal_and_new_in_every_step():
    from scipy import stats

    loss = EnsLoss(classes=2, samples=20000)
    first = loss.draws.clone()
    index = torch.arange(20000)
    loss.observe(Output(torch.zeros(20000, 2), torch.zeros(20000, 2)), batch(torch.zeros(20000).long(), index))
    for draws in (first, loss.draws):
        assert stats.kstest(draws.numpy(), "norm").pvalue > 1e-3
    assert abs(stats.spearmanr(first, loss.draws).statistic) < 0.03  # four standard deviations
    assert abs(stats.spearmanr(first[1:], first[:-1]).statistic) < 0.03
    assert torch.equal(normal(loss.keys), loss.draws)
    torch.manual_seed(0)
    again = EnsLoss(classes=2, samples=20000)
    torch.manual_seed(1)
    assert torch.equal(again.draws, first)
    assert not torch.equal(EnsLoss(classes=2, samples=20000).draws, first)


def test_ensloss_has_two_classes():
    with pytest.raises(ValueError, match="two classes, and this data set has 3"):
        EnsLoss(classes=3, samples=2)


def test_poly_equals_the_values_of_optax():
    """optax computed these for its own tests with the TensorFlow code that the paper prints."""
    logits = torch.tensor([[0.14, 1.456, 2.356, -0.124, -2.47]], dtype=torch.float64)
    y = torch.tensor([[0.1, 0.15, 0.2, 0.25, 0.3]], dtype=torch.float64)
    for epsilon, expected in {2: 4.5317, 1: 3.7153, -1: 2.0827, 0: 2.8990, 1.15: 3.8378, 5.45: 7.3480}.items():
        assert value(Poly(epsilon), logits, y).item() == pytest.approx(expected, abs=1e-4)
