"""CVaR and SPL+: the objective, the prox-linear problem that the closed form solves, whole steps in plain PyTorch."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from runner.core.batch import Batch
from runner.core.weights import Weights
from runner.hook.spl_plus import SPLPlus
from runner.risk.cvar import CVaR
from runner.risk.mean import Mean
from runner.sharpness.none import Plain
from tests.tiny import SMALL, trainer


def batch(n: int) -> Batch:
    return Batch(torch.zeros(n, 1), torch.zeros(n, dtype=torch.int64), torch.arange(n))


def test_the_objective_by_hand():
    risk, losses = CVaR(0.75).double(), torch.tensor([1.0, 4.0, 2.0, 8.0], dtype=torch.float64)
    risk.alpha.data.fill_(3.0)
    value = risk(losses, batch(4))
    assert value.item() == 9.0  # 3 + (1 + 5) / 4 / 0.25
    value.backward()
    assert risk.alpha.grad.item() == -1.0  # 1 - (2 / 4) / 0.25


def test_its_minimum_over_alpha_is_the_mean_of_the_worst():
    losses = torch.rand(20, dtype=torch.float64)
    for beta, worst in ((0.9, 2), (0.75, 5), (0.0, 20)):
        risk, values = CVaR(beta).double(), []
        for alpha in [*losses, torch.tensor(0.0)]:
            risk.alpha.data.copy_(alpha)
            values.append(risk(losses, batch(20)).item())
        assert min(values) == pytest.approx(losses.sort().values[-worst:].mean().item(), rel=1e-12)


def test_alpha_finds_the_quantile():
    """Only alpha is trained, on fixed losses: 1 .. 100 at beta = 0.9 has any number in [90, 91]."""
    risk, losses = CVaR(0.9).double(), torch.arange(1.0, 101, dtype=torch.float64)
    optimizer = torch.optim.SGD(risk.parameters(), lr=0.5)
    for _ in range(300):
        optimizer.zero_grad()
        risk(losses, batch(100)).backward()
        optimizer.step()
    assert 89.5 <= risk.alpha.item() <= 91.5


def step(hook: SPLPlus, loss: float, g: torch.Tensor, alpha: float, lr: float) -> tuple[np.ndarray, float]:
    """(v - w, alpha) after the hook and SGD."""
    layer = nn.Linear(3, 1, bias=False).double()
    weights = Weights(layer)
    run = SimpleNamespace(
        weights=weights,
        value=torch.tensor(loss, dtype=torch.float64),
        optimizer=SimpleNamespace(param_groups=[{"lr": lr}]),
        sharpness=Plain(),
        risk=Mean(),
        train=SimpleNamespace(batch_size=1),
        notices=[],
    )
    hook.start(run)
    hook.alpha.fill_(alpha)
    weights.set_grad([g.view(1, 3)])
    hook.gradient(run)
    return -lr * layer.weight.grad[0].numpy(), hook.alpha.item()


@pytest.mark.parametrize(
    ("loss", "alpha", "multiplier"),
    [(0.1, 3.0, "none"), (2.0, 1.9, "between"), (2.0, 2.05, "between"), (30.0, 1.0, "all")],
)
@pytest.mark.parametrize(("lr", "ratio"), [(0.1, 1.0), (0.02, 25.0), (0.5, 0.4)])
def test_the_step_solves_the_prox_linear_problem(loss, alpha, multiplier, lr, ratio):
    beta, g = 0.8, torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    move, found = step(SPLPlus(beta, ratio), loss, g, alpha, lr)

    def objective(d, a):
        hinge = np.maximum(loss + d @ g.numpy() - a, 0)
        return a + hinge / (1 - beta) + (d**2).sum(-1) / (2 * lr) + (a - alpha) ** 2 / (2 * ratio * lr)

    generator = np.random.default_rng(0)  # the problem is strongly convex: nothing nearby is better at its minimum only
    for size in (1.0, 1e-1, 1e-2, 1e-3):
        d, a = (generator.normal(size=shape) * size for shape in ((5000, 3), 5000))
        assert (objective(move + d, found + a) > objective(move, found)).all()
    length = np.linalg.norm(move) / (lr * np.linalg.norm(g.numpy()))
    assert {"none": length == 0, "between": 0 < length < 5 - 1e-9, "all": length == pytest.approx(5)}[multiplier]


def test_whole_steps_in_plain_pytorch():
    words = ["hook=spl_plus", "hook.spl_plus.beta=0.5", "hook.spl_plus.ratio=0.5", "schedule=linear", "optim.lr=0.1"]
    words += ["optim.momentum=0", "optim.weight_decay=0", "train.batch_size=1", "train.accumulate=1"]
    run = trainer(*SMALL, *words, double=True)
    model = trainer(*SMALL, double=True).model
    assert torch.equal(next(model.parameters()), next(run.model.parameters()))
    alpha, scales = 0.0, []
    for count, own in enumerate(run.loader.epoch(0)):
        if count == 60:
            break
        run.step(own)
        lr = run.optimizer.param_groups[0]["lr"]
        loss = F.cross_entropy(model(own.x).logits, own.y)
        grads = torch.autograd.grad(loss, list(model.parameters()))
        norm = sum(grad.square().sum().item() for grad in grads)
        scale = min(max((loss.item() - alpha + 0.5 * lr) / (0.5 * lr + lr * norm), 0), 2)
        alpha += 0.5 * lr * (scale - 1)
        scales.append(scale)
        for parameter, grad in zip(model.parameters(), grads, strict=True):
            parameter.data -= lr * scale * grad
    assert 0 in scales and 2 in scales and any(0 < scale < 2 for scale in scales)
    assert run.hooks.state_dict()["spl_plus"]["alpha"].item() == pytest.approx(alpha, rel=1e-9)
    for mine, theirs in zip(model.parameters(), run.model.parameters(), strict=True):
        torch.testing.assert_close(theirs, mine, rtol=1e-9, atol=1e-12)


PLAIN = ["hook=spl_plus", "optim.momentum=0", "optim.weight_decay=0", "train.batch_size=1", "dataset.subset=20"]


@pytest.mark.parametrize(
    "words, says",
    [
        (["optim.momentum=0.5"], "optim.momentum=0.5"),
        (["optim.weight_decay=0.001"], "optim.weight_decay=0.001"),
        (["train.batch_size=4"], "train.batch_size=4"),
        (["sharpness=sam"], "sharpness method SAM"),
        (["risk=cvar"], "risk CVaR"),
        (["optim=adam", "~optim.momentum"], "optimizer Adam"),
    ],
)
def test_what_is_not_spl_plus_says_so(words, says):
    plain = PLAIN if "~optim.momentum" not in words else [w for w in PLAIN if not w.startswith("optim")]
    run = trainer(*plain, *[word for word in words if word[0] != "~"])
    (line,) = [line for line in run.notices if line.startswith("hook=spl_plus")]
    assert "SPL+ is the step of plain SGD" in line and f"with {says} the gradient" in line
    assert not [line for line in trainer(*PLAIN).notices if "spl_plus" in line]
