"""Spectral decoupling against the formula, and the whole Colored MNIST recipe against plain PyTorch."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import vmap
from torch.nn import functional as F

from runner.core.batch import Batch, Output
from runner.core.weights import Weights
from runner.dataset import Split, colored_mnist
from runner.hook.spectral_decoupling import SpectralDecoupling
from tests.tiny import SMALL, compose, trainer

LOGITS = torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.0, -1.0]], dtype=torch.float64)
SQUARES = (1 + 4 + 0.25) + (9 + 0 + 1)


def penalty(hook, count, logits=LOGITS):
    batch = Batch(torch.zeros(len(logits), 1), torch.zeros(len(logits)), torch.arange(len(logits)))
    return hook.loss(SimpleNamespace(count=count), Output(logits, logits), batch)


def test_the_penalty_by_hand():
    """DomainBed's: the coefficient times the mean over samples and logits."""
    value = penalty(SpectralDecoupling(), count=0)
    assert value.shape == ()
    assert value.item() == pytest.approx(0.1 * SQUARES / 6, rel=1e-14)
    half = penalty(SpectralDecoupling(0.3), 0, LOGITS.to(torch.float16) * 100)  # squares over fp16's range
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(0.3 * SQUARES * 1e4 / 6, rel=1e-6)


def test_the_coefficient_changes_at_the_step_asked_for():
    hook = SpectralDecoupling(2.0, delay=450, before=4e-5, scale=2e-5)
    for count, coefficient in ((0, 4e-5), (449, 4e-5), (450, 2.0), (2000, 2.0)):
        assert penalty(hook, count).item() == pytest.approx(coefficient * SQUARES / 6, rel=1e-14)
    assert penalty(SpectralDecoupling(2.0, delay=3), 2).item() == 0


def test_the_scale_is_of_the_whole_gradient_and_comes_with_the_change():
    hook = SpectralDecoupling(delay=3, scale=0.25)
    for count, factor in ((0, 1), (2, 1), (3, 0.25), (9, 0.25)):
        weights = Weights(nn.Linear(3, 2))
        weights.grad.fill_(8.0)
        hook.gradient(SimpleNamespace(count=count, weights=weights))
        assert torch.equal(weights.grad, torch.full_like(weights.grad, 8.0 * factor))


def test_the_gradient_is_that_of_loss_and_penalty():
    """Central differences of cross-entropy + 0.7 * mean z^2, written in numpy."""
    run = trainer(*SMALL, "hook=spectral_decoupling", "hook.spectral_decoupling.coefficient=0.7", double=True)
    batch = next(run.loader.epoch(0, 0))

    def value():
        z = run.model(batch.x).logits.detach().numpy()
        nll = np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), batch.y.numpy()]
        return nll.mean() + 0.7 * (z**2).mean()

    run.gradient(batch)
    gradient, step = run.weights.grad.clone(), 1e-6
    for i in torch.randperm(len(gradient))[:25]:
        kept = run.weights.data[i].item()
        sides = []
        for sign in (1, -1):
            run.weights.data[i] = kept + sign * step
            sides.append(value())
        run.weights.data[i] = kept
        assert gradient[i].item() == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=1e-6, abs=1e-8)


def test_micro_batches_change_nothing():
    overrides = [*SMALL, "hook=spectral_decoupling"]
    runs = [trainer(*overrides, f"train.accumulate={parts}", double=True) for parts in (1, 4)]
    gradients = []
    for run in runs:
        run.gradient(next(run.loader.epoch(0, 0)))
        gradients.append(run.weights.grad)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-14)


def test_replicas_with_numbers_of_their_own():
    alone = [SpectralDecoupling(0.5, 3, 0.1, 0.25), SpectralDecoupling(0.25, 5, 0.0, 4.0)]
    together = SpectralDecoupling()
    names = ("coefficient", "delay", "before", "scale")
    stacked = [torch.tensor([getattr(hook, name) for hook in alone]) for name in names]
    logits = torch.randn(2, 6, 3, dtype=torch.float64)
    for count in (2, 4, 6):

        def one(numbers, z, count=count):
            for name, value in zip(names, numbers, strict=True):
                setattr(together, name, value)
            return penalty(together, count, z)

        values = vmap(one)(stacked, logits)
        expected = [penalty(hook, count, z) for hook, z in zip(alone, logits, strict=True)]
        torch.testing.assert_close(values, torch.stack(expected), rtol=1e-7, atol=0)
        weights = Weights.stack([Weights(nn.Linear(2, 2)) for _ in alone])
        weights.grad.fill_(1.0)
        for name, value in zip(names, stacked, strict=True):
            setattr(together, name, value)
        together.gradient(SimpleNamespace(count=count, weights=weights))
        factors = [hook.scale if count >= hook.delay else 1.0 for hook in alone]
        assert torch.equal(weights.grad[:, 0], torch.tensor(factors))


# ---- the recipe of Colored MNIST


@pytest.fixture
def colored(monkeypatch):
    """dataset=colored_mnist with 120 training images that are not MNIST's."""

    class Reader:
        def __init__(self, **_): ...
        def load(self):
            draw = np.random.default_rng(1)
            images = torch.from_numpy(draw.integers(0, 256, (10_120, 1, 28, 28), dtype=np.uint8))
            return Split(images, torch.from_numpy(draw.integers(0, 10, 10_120))), None

    monkeypatch.setattr(colored_mnist, "Hub", Reader)


@pytest.mark.parametrize("arm", ["erm", "sd"])
def test_the_recipe_is_the_papers_in_plain_pytorch(colored, arm):
    """One logit, binary cross-entropy, torch's own Adam: the same weights after nine steps, six of them scaled down.

    The scaled gradients are close to Adam's epsilon, so that order of scaling and epsilon matter.
    """
    steps, delay = 9, 3
    words = ["dataset=colored_mnist", "model=mlp_reference", "model.hidden=[20,20]", "optim=adam", "optim.lr=1e-3"]
    words += ["schedule=constant", "train.batch_size=120", f"train.steps={steps}"]
    if arm == "sd":
        words += ["hook=spectral_decoupling", "hook.spectral_decoupling.coefficient=2.0"]
        words += [f"hook.spectral_decoupling.delay={delay}", "hook.spectral_decoupling.before=4e-5"]
        words += ["hook.spectral_decoupling.scale=2e-5"]
    run = trainer(*words, double=True)
    assert (run.steps, run.steps_per_epoch) == (steps, 1)

    layers = [nn.Linear(392, 20), nn.Linear(20, 20), nn.Linear(20, 1)]
    plain = nn.Sequential(nn.Flatten(), layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]).double()
    with torch.no_grad():
        for mine, theirs in zip(plain.parameters(), run.weights.parameters, strict=True):
            mine.copy_(theirs)
    start = run.weights.clone()
    x, y = run.dataset.train.x.double() / 255, run.dataset.train.y.double()[:, None]
    adam = torch.optim.Adam(plain.parameters(), lr=1e-3)
    losses = []
    for step in range(steps):
        for batch in run.loader.epoch(step, 0):
            losses.append(run.step(batch).item())
        z = plain(x)
        loss, squares = F.binary_cross_entropy_with_logits(z, y), z.square().mean()
        if arm == "sd":
            early = loss + 2e-5 * squares
            loss = 2e-5 * (squares + loss) if step >= delay else early
        recorded = loss.item() / (2e-5 if arm == "sd" and step >= delay else 1)
        assert losses[-1] == pytest.approx(recorded, rel=1e-6)  # inputs are scaled in fp32 constants
        adam.zero_grad()
        loss.backward()
        adam.step()
    moved = (run.weights.data - start).abs().max()
    for mine, theirs in zip(plain.parameters(), run.weights.parameters, strict=True):
        torch.testing.assert_close(theirs, mine, rtol=0, atol=1e-5 * moved.item())


def test_the_option_has_domainbeds_numbers():
    node = compose("hook=spectral_decoupling")["hook"]["spectral_decoupling"]
    assert (node["coefficient"], node["delay"], node["scale"]) == (0.1, 0, 1.0)
