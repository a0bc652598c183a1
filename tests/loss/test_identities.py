"""Losses that are others for some value of their parameters, and what they do not see."""

from math import log

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from runner.core import distributed
from runner.core.batch import Output
from runner.loss import log_rest, remember
from runner.loss.aldr_kl import ALDRKL
from runner.loss.asl import Asymmetric, AsymmetricMultilabel
from runner.loss.ce import CrossEntropy
from runner.loss.comp_sum import CompSum
from runner.loss.dual_focal import DualFocal
from runner.loss.elr import ELR
from runner.loss.encouraging import Encouraging
from runner.loss.evidential import Evidential
from runner.loss.focal import Focal
from runner.loss.ldr_kl import LDRKL
from runner.loss.mse import Square
from runner.loss.poly import Poly
from runner.loss.poly_focal import PolyFocal
from runner.loss.squentropy import Squentropy
from runner.loss.stablemax import StableMax
from runner.loss.z_loss_spherical import SphericalZ
from tests.loss.made import FEATURES, IDS, MULTIHOT, SOFT, B, C, batch, draw, value


@pytest.mark.parametrize("y", [IDS, SOFT], ids=["ids", "soft"])
def test_special_cases(y):
    z = draw(B, C)
    ce = F.cross_entropy(z, y, reduction="none")
    torch.testing.assert_close(value(CrossEntropy(), z, y), ce)
    torch.testing.assert_close(value(Focal(0.0), z, y), ce)
    torch.testing.assert_close(value(Poly(0.0), z, y), ce)
    torch.testing.assert_close(value(PolyFocal(0.0, 0.0), z, y), ce)
    torch.testing.assert_close(value(PolyFocal(0.0, 1.5), z, y), value(Focal(1.5), z, y))
    torch.testing.assert_close(value(PolyFocal(0.7, 0.0), z, y), value(Poly(0.7), z, y))
    smooth = F.cross_entropy(z, y, reduction="none", label_smoothing=0.2)
    torch.testing.assert_close(value(CrossEntropy(0.2), z, y), smooth)
    torch.testing.assert_close(value(Poly(0.0, 0.2), z, y), smooth)


@pytest.mark.parametrize("y", [IDS, SOFT], ids=["ids", "soft"])
def test_special_cases_of_later_losses(y):
    z = draw(B, C)
    ce, p = F.cross_entropy(z, y, reduction="none"), torch.softmax(z, -1)
    chance = (p * (F.one_hot(y, C) if y.dim() == 1 else y)).sum(-1)
    torch.testing.assert_close(value(CompSum(1.0), z, y), ce)
    torch.testing.assert_close(value(CompSum(2.0), z, y), 1 - chance)
    torch.testing.assert_close(value(LDRKL(1.0, 0.0), z, y), ce - log(C))
    torch.testing.assert_close(value(LDRKL(2.0, 0.0), z, y), 2 * (value(CrossEntropy(), z / 2, y) - log(C)))
    torch.testing.assert_close(value(ALDRKL(0.7, 1e9, 0.3, samples=B), z, y), value(LDRKL(0.7, 0.3), z, y))
    torch.testing.assert_close(value(DualFocal(0.0), z, y), ce)
    torch.testing.assert_close(value(Encouraging(0.0), z, y), value(Poly(1.0), z, y) - 1)  # the bonus is -p
    torch.testing.assert_close(value(StableMax(), z, y), value(CrossEntropy(), z.sign() * torch.log1p(z.abs()), y))
    smooth = F.cross_entropy(z, y, reduction="none", label_smoothing=0.2)
    torch.testing.assert_close(value(Asymmetric(0.0, 0.0, 0.2), z, y), smooth)
    torch.testing.assert_close(value(Asymmetric(1.5, 4.0, 0.0), z, y), value(Focal(1.5), z, y))
    elr = ELR(lam=0.0, classes=C, samples=B)
    elr.observe(Output(draw(B, C, seed=6), FEATURES), batch(y))
    torch.testing.assert_close(value(elr, z, y), ce)


def test_ldr_kl_without_temperature_is_the_hinge_of_crammer_and_singer():
    z = draw(B, C)
    gains = z - z.gather(-1, IDS[:, None]) + 0.7 * (1 - F.one_hot(IDS, C).double())
    torch.testing.assert_close(value(LDRKL(1e-9, 0.7), z, IDS), gains.amax(-1), atol=1e-8, rtol=0)


def test_dual_focal_of_the_least_likely_class_is_focal():
    z = draw(B, C)
    torch.testing.assert_close(value(DualFocal(3.0), z, z.argmin(-1)), value(Focal(3.0), z, z.argmin(-1)))


def test_the_spherical_z_loss_sees_neither_shift_nor_scale():
    z, loss = draw(B, C), SphericalZ(2.0, 0.5)
    torch.testing.assert_close(value(loss, 7 * z - 3, IDS), value(loss, z, IDS))
    assert not torch.allclose(value(loss, -z, IDS), value(loss, z, IDS))


def test_log_rest_leaves_one_class_out():
    z = torch.cat([draw(B, C), torch.tensor([[30.0, 0, 0, 1, 1], [2.0, 2, 2, 2, 2], [-900.0, 900, 0, 0, 0]])])
    for c in range(C):
        others = torch.cat([z[:, :c], z[:, c + 1 :]], 1)
        torch.testing.assert_close(log_rest(z)[:, c], others.logsumexp(-1))


def test_a_loss_that_is_almost_nothing_is_not_rounded_away():
    """Of (30, 0, 0, 0, 0), in fp32: ln(1 + 4 e^-30) = 4 e^-30, and so is the gradient's size."""
    z = torch.tensor([[30.0, 0, 0, 0, 0]], requires_grad=True)
    rest = log_rest(z)[0, 0] - z[0, 0]
    (gradient,) = torch.autograd.grad(F.softplus(rest), z)
    torch.testing.assert_close(gradient[0, 0].item(), -4 * np.exp(-30), rtol=1e-5, atol=0)
    assert F.cross_entropy(z, torch.tensor([0])).item() == 0  # which is


def test_asl_equals_public_implementations():
    """Values and gradients. timm's are in fp32, and sums or means over a batch."""
    from timm.loss import AsymmetricLossMultiLabel, AsymmetricLossSingleLabel
    from torchvision.ops import sigmoid_focal_loss

    z = draw(B, C).requires_grad_()

    def both(ours, theirs):
        ours, theirs = ours.sum().float(), theirs.sum().float()
        torch.testing.assert_close(ours, theirs)
        gradients = [torch.autograd.grad(loss, z)[0].float() for loss in (ours, theirs)]
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)

    def each(loss, y):
        return sum(loss(z[row : row + 1], y[row : row + 1]) for row in range(B))

    for stop in (True, False):
        timm = AsymmetricLossMultiLabel(3, 2, clip=0.1, disable_torch_grad_focal_loss=stop)
        both(value(AsymmetricMultilabel(2.0, 3.0, 0.1, stop), z, MULTIHOT), each(timm, MULTIHOT))
    timm = AsymmetricLossSingleLabel(gamma_neg=3, gamma_pos=2, eps=0.2)
    both(value(Asymmetric(2.0, 3.0, 0.2), z, IDS), each(timm, IDS))
    focal = sigmoid_focal_loss(z, MULTIHOT.double(), alpha=-1, gamma=1.7)
    both(value(AsymmetricMultilabel(1.7, 1.7, 0.0, False), z, MULTIHOT), focal)
    entropy = F.binary_cross_entropy_with_logits(z, MULTIHOT.double(), reduction="none")
    both(value(AsymmetricMultilabel(0.0, 0.0, 0.0), z, MULTIHOT), entropy)


def test_memories_have_the_rows_of_every_process(monkeypatch):
    """Each process sees its share of the batch; all gather all shares."""
    other = torch.tensor([4, 0]), torch.tensor([[5.0], [6.0]])
    monkeypatch.setattr(distributed, "world", 2)
    monkeypatch.setattr(distributed, "all_of", lambda own: [own, other])
    memory = torch.zeros(5, 1)
    remember(memory, torch.tensor([1, 3]), torch.tensor([[7.0], [8.0]], dtype=torch.float64))
    assert torch.equal(memory, torch.tensor([[6.0], [7.0], [0.0], [8.0], [5.0]]))


def test_plain_square_is_the_mean_square_to_one_hot():
    z = draw(B, C)
    torch.testing.assert_close(
        value(Square(), z, IDS), F.mse_loss(z, F.one_hot(IDS, C).double(), reduction="none").mean(-1)
    )


@pytest.mark.parametrize(
    "loss",
    [
        *(
            CrossEntropy(0.1),
            Focal(),
            Poly(),
            PolyFocal(),
            Square(15.0, 30.0),
            CompSum(),
            LDRKL(0.5, 1.0),
            Squentropy(),
        ),
        *(DualFocal(), StableMax(), Encouraging(), SphericalZ(), Asymmetric(1.0), ALDRKL(samples=B)),
        ELR(classes=C, samples=B),
    ],
    ids=str,
)
def test_mixed_targets_mix_the_losses(loss):
    """mixup, arXiv:1710.09412: training on the mixed target is the mixture of the two targets' losses."""
    z, other, lam = draw(B, C), IDS.roll(1), 0.3
    mixed = lam * F.one_hot(IDS, C) + (1 - lam) * F.one_hot(other, C)
    torch.testing.assert_close(value(loss, z, mixed), lam * value(loss, z, IDS) + (1 - lam) * value(loss, z, other))


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        (CrossEntropy(), "label_smoothing"),
        (Focal(), "gamma"),
        (Poly(), "epsilon"),
        (PolyFocal(), "gamma"),
        (Square(), "k"),
        (CompSum(), "tau"),
        (LDRKL(), "margin"),
        (ALDRKL(samples=B), "margin"),
        (DualFocal(), "gamma"),
        (Encouraging(), "log_end"),
        (SphericalZ(), "b"),
        (Asymmetric(), "gamma_neg"),
        (ELR(classes=C, samples=B), "lam"),
        (Evidential(), "kl"),
    ],
    ids=lambda value: value if isinstance(value, str) else value._get_name(),
)
def test_a_hyperparameter_may_differ_between_replicas(loss, name):
    z, settings = draw(B, C), torch.tensor([0.0, 0.3, 0.9, 1.0] if name != "log_end" else [0.0, 0.3, 0.9])

    def one(setting):
        setattr(loss, name, setting)
        return value(loss, z, IDS)

    packed = torch.func.vmap(one)(settings)
    torch.testing.assert_close(packed, torch.stack([one(setting.item()) for setting in settings]), rtol=1e-6, atol=1e-7)
