"""Every optimizer: an independent reference for ten steps, flat equals per tensor, descent, no silent nonsense."""

import copy

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from runner.command.build import build, check, locate
from runner.core.mistake import ConfigError
from runner.core.weights import Weights
from runner.engine import grouped
from runner.groups import Groups
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


def over(config: dict, model: nn.Module, groups: Groups) -> tuple[Weights, torch.optim.Optimizer]:
    """The optimizer as a run makes it."""
    weights, tensors = grouped.divided({"optim": config}, groups, model)
    make, params = grouped.optimizer(config, weights, tensors)
    return weights, make(params)


def fitted(name: str, groups: Groups, steps: int) -> tuple[Weights, list[float]]:
    """The weights of a small network, and the losses on the way."""
    config = node(name)
    check(config, "optim")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    weights, made = over(config, model, groups)
    x, y = torch.randn(8, 3, dtype=torch.float64), torch.randn(8, 2, dtype=torch.float64)

    def closure():
        weights.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    return weights, [made.step(closure).item() for _ in range(steps)]


class Each(Groups):
    """Every tensor by itself, with factors that change nothing worth mentioning."""

    def __call__(self, tensors):
        return [(1.0, 1.0 + 1e-15 * number) for number in range(len(tensors))]


@pytest.mark.parametrize("name", NAMES)
def test_descends_and_does_in_slices_what_it_does_at_once(name):
    at_once, losses = fitted(name, Groups(), 30)
    assert losses[-1] < losses[0]
    apart, others = fitted(name, Each(), 30)
    assert len(apart.slices) == 6
    np.testing.assert_allclose(others, losses, rtol=1e-9)
    same = dict(apart.views(apart.data))
    for key, value in at_once.views(at_once.data):
        torch.testing.assert_close(same[key], value, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_slices_are_the_same_as_tensors(name):
    kind = locate(node(name)["_target_"], "optim")
    if getattr(kind, "split", ()) or not kind.flat:
        pytest.skip(f"{name} has to know what the tensors are")
    models = [nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    flat = Weights(models[0])
    optimizers = [build(node(name), "optim", params=params) for params in (flat.slices, list(models[1].parameters()))]
    x = torch.randn(8, 3, dtype=torch.float64)
    for _ in range(5):
        for model, made in zip(models, optimizers, strict=True):
            made.zero_grad(set_to_none=False)
            model(x).square().sum().backward()
            made.step()
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_replicas_step_as_each_of_them_alone(name):
    """With learning rates of their own, over (K, P)."""
    config, start = node(name), nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(3, 2)).double()
    rates, alone, grads = [0.01, 0.05], [], torch.randn(2, 3, 500, dtype=torch.float64)
    for rate, grad in zip(rates, grads, strict=True):
        weights, made = over({**config, "lr": rate}, copy.deepcopy(start), Groups())
        alone.append(weights)
        for own in grad:
            masked(weights, own)
            made.step()
    members = [over(config, copy.deepcopy(start), Groups()) for _ in rates]
    stacked = Weights.stack([weights for weights, _ in members])
    both = members[0][1]
    for group, own in zip(both.param_groups, stacked.slices, strict=True):
        group["params"] = [own]
        if group.get("part") != "rest":
            group["lr"] = torch.tensor(rates, dtype=torch.float64)
    for step in range(3):
        masked(stacked, grads[:, step])
        both.step()
    for row, weights in zip(stacked.data, alone, strict=True):
        torch.testing.assert_close(row, weights.data, rtol=1e-10, atol=1e-12)


def masked(weights: Weights, values: torch.Tensor) -> None:
    """A gradient of these values, zero between the tensors."""
    weights.zero_grad()
    values = values[..., : weights.data.shape[-1]]
    for (_, to), (_, of) in zip(weights.views(weights.grad), weights.views(values), strict=True):
        to.copy_(of)


def test_nesterov_without_momentum_is_one_line():
    with pytest.raises(ConfigError, match="optim: nesterov needs momentum"):
        build({"_target_": "runner.optim.sgd.SGD", "lr": 0.1, "nesterov": True}, "optim", params=[torch.ones(1)])
