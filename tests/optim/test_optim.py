"""Every optimizer: an independent reference for ten steps, flat equals per tensor, descent, no silent nonsense."""

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from runner.command.build import build, check
from runner.core.mistake import ConfigError
from runner.core.weights import Weights
from runner.optim.adam import Adam
from runner.optim.sgd import SGD
from tests.conftest import ROOT

CONF = ROOT / "conf" / "optim"


def node(name: str) -> dict:
    content = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    merged: dict = {}
    for entry in content.pop("defaults", []):
        if isinstance(entry, str) and entry != "_self_":
            merged |= node(entry)
    return merged | {k: float(v) if isinstance(v, str) and k != "_target_" else v for k, v in content.items()}


NAMES = sorted(path.stem for path in CONF.glob("[!_]*.yaml"))


def gradients(w: np.ndarray, t: int) -> np.ndarray:
    """Some deterministic gradient, so that the reference needs no autograd."""
    return np.sin(w * (t + 1)) + 0.1 * w


def sgd(w, lr, momentum=0.0, weight_decay=0.0, dampening=0.0, nesterov=False):
    v = None
    for t in range(10):
        g = gradients(w, t) + weight_decay * w
        v = g.copy() if v is None else momentum * v + (1 - dampening) * g
        w = w - lr * ((g + momentum * v) if nesterov else v if momentum else g)
    return w


def adam(w, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, decoupled=False, bias_correction=True, v0=0.0):
    m, v = np.zeros_like(w), np.full_like(w, v0)
    for t in range(10):
        g = gradients(w, t)
        if decoupled:
            w = w * (1 - lr * weight_decay)
        else:
            g = g + weight_decay * w
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        c1, c2 = (1 - betas[0] ** (t + 1), 1 - betas[1] ** (t + 1)) if bias_correction else (1.0, 1.0)
        w = w - lr * (m / c1) / (np.sqrt(v / c2) + eps)
    return w


@pytest.mark.parametrize(
    ("ours", "reference", "settings"),
    [
        (SGD, sgd, {"lr": 0.1}),
        (SGD, sgd, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
        (SGD, sgd, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}),
        (SGD, sgd, {"lr": 0.1, "momentum": 0.8, "dampening": 0.3}),
        (Adam, adam, {"lr": 0.05}),
        (Adam, adam, {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}),
        (Adam, adam, {"lr": 0.05, "weight_decay": 0.1, "decoupled": True}),
        (Adam, adam, {"lr": 0.05, "betas": (0.9, 0.99), "eps": 1e-3, "bias_correction": False, "v0": 1e-6}),
    ],
)
def test_ten_steps_equal_the_formula(ours, reference, settings):
    start = np.linspace(-2, 2, 7)
    w = nn.Parameter(torch.tensor(start))
    optimizer = ours([w], **settings)
    for t in range(10):
        w.grad = torch.tensor(gradients(w.detach().numpy(), t))
        optimizer.step()
    np.testing.assert_allclose(w.detach().numpy(), reference(start, **settings), rtol=1e-12)


@pytest.mark.parametrize(
    ("ours", "theirs", "settings"),
    [
        (SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}),
        (SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.1}),
        (Adam, torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1}),
    ],
)
def test_ten_steps_equal_torch(ours, theirs, settings):
    a, b = (nn.Parameter(torch.linspace(-1, 1, 9, dtype=torch.float64)) for _ in range(2))
    for w, optimizer in ((a, ours([a], **settings)), (b, theirs([b], **settings))):
        for t in range(10):
            w.grad = torch.tensor(gradients(w.detach().numpy(), t))
            optimizer.step()
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_decoupled_equals_torch_adamw():
    a, b = (nn.Parameter(torch.linspace(-1, 1, 9, dtype=torch.float64)) for _ in range(2))
    ours = Adam([a], lr=0.01, weight_decay=0.1, decoupled=True)
    theirs = torch.optim.AdamW([b], lr=0.01, weight_decay=0.1)
    for t in range(10):
        for w, optimizer in ((a, ours), (b, theirs)):
            w.grad = torch.tensor(gradients(w.detach().numpy(), t))
            optimizer.step()
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_descends_on_a_quadratic(name):
    config = node(name)
    check(config, "optim")
    w = nn.Parameter(torch.tensor([1.0, -1.0, 0.5]))
    optimizer = build(config, "optim", params=[w])

    def closure():
        optimizer.zero_grad()
        loss = (w**2 * torch.tensor([1.0, 0.5, 2.0])).sum()
        loss.backward()
        return loss

    first = optimizer.step(closure).item()
    for _ in range(30):
        last = optimizer.step(closure).item()
    assert last < first


@pytest.mark.parametrize("name", NAMES)
def test_one_flat_tensor_is_the_same_as_many(name):
    config = node(name)
    models = [nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    flat = Weights(models[0])
    optimizers = [
        build(config, "optim", params=[flat.flat]),
        build(config, "optim", params=list(models[1].parameters())),
    ]
    if not getattr(type(optimizers[0]), "elementwise", False):
        pytest.skip(f"{name} is not elementwise and is never handed a flat tensor")
    x = torch.randn(8, 3, dtype=torch.float64)
    for _ in range(5):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad(set_to_none=False)
            model(x).square().sum().backward()
            optimizer.step()
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_nesterov_without_momentum_is_one_line():
    with pytest.raises(ConfigError, match="optim: nesterov needs momentum"):
        build({"_target_": "runner.optim.sgd.SGD", "lr": 0.1, "nesterov": True}, "optim", params=[torch.ones(1)])
