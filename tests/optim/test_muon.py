"""Muon against its definition by singular values, torch's own, and hand-made cases."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from runner.core.mistake import ConfigError
from runner.engine.grouped import divided, optimizer
from runner.groups import Groups
from runner.optim.adam import Adam
from runner.optim.muon import Muon, orthogonalized
from tests.tiny import trainer

WORDS = ["dataset.subset=60", "train.batch_size=20", "optim=muon"]


def by_singular_values(x: np.ndarray, steps: int) -> np.ndarray:
    """The quintic on the singular values of x / |x|_F, U and V as they are: what the iteration is meant to do."""
    u, s, v = np.linalg.svd(x / np.linalg.norm(x), full_matrices=False)
    for _ in range(steps):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u * s @ v


@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (5, 5), (1, 6), (6, 1)])
@pytest.mark.parametrize("steps", [1, 5, 8])
def test_the_iteration_is_the_quintic_on_singular_values(shape, steps):
    x = np.random.default_rng(0).normal(size=(3, *shape))
    found = orthogonalized(torch.from_numpy(x), steps).numpy()
    np.testing.assert_allclose(found, [by_singular_values(one, steps) for one in x], rtol=1e-8, atol=1e-10)


def test_singular_values_end_near_one_and_zeros_stay():
    x = torch.randn(64, 32, dtype=torch.float64)
    values = torch.linalg.svdvals(orthogonalized(x, 5))
    assert values.min() > 0.5 and values.max() < 1.3
    assert not orthogonalized(torch.zeros(3, 2), 5).any()


def network() -> nn.Module:
    """Two hidden matrices of one shape, a kernel, a norm, and a classifier."""
    body = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(24, 6), nn.Linear(6, 6))
    model = nn.Module()
    model.body, model.head = nn.Sequential(*body, nn.Linear(6, 6)), nn.Linear(6, 3)
    return model.double()


SETTINGS = {"lr": 0.03, "momentum": 0.8, "weight_decay": 0.1, "rest_lr": 0.01, "betas": [0.8, 0.9], "eps": 1e-6}


def over(model: nn.Module, **settings):
    node = {"_target_": "runner.optim.muon.Muon", **SETTINGS, **settings}
    weights, tensors = divided({"optim": node}, Groups(), model)
    make, params = optimizer(node, weights, tensors)
    return weights, make(params)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_ten_steps_equal_the_formula_tensor_by_tensor(nesterov, memory_format):
    model = network().to(memory_format=memory_format)
    weights, made = over(model, nesterov=nesterov, steps=4)
    now = {name: parameter.detach().clone().numpy() for name, parameter in model.named_parameters()}
    matrices = {name for name, w in now.items() if w.ndim > 1 and not name.startswith("head")}
    assert len(matrices) == 4
    rest = {name: nn.Parameter(torch.from_numpy(now[name]).clone()) for name in now.keys() - matrices}
    adam = Adam(list(rest.values()), 0.01, (0.8, 0.9), 1e-6, 0.1, decoupled=True)
    velocity = {name: np.zeros_like(now[name]) for name in matrices}
    for step in range(10):
        weights.zero_grad()
        for name, parameter in model.named_parameters():
            grad = np.sin(parameter.detach().numpy() * (step + 1)) + 0.1
            parameter.grad.copy_(torch.from_numpy(grad))
            if name in rest:
                rest[name].grad = torch.from_numpy(grad)
                continue
            velocity[name] = 0.8 * velocity[name] + 0.2 * grad
            turned = 0.2 * grad + 0.8 * velocity[name] if nesterov else velocity[name]
            turned = by_singular_values(turned.reshape(len(turned), -1), 4).reshape(grad.shape)
            m, n = len(grad), grad[0].size
            now[name] = now[name] * (1 - 0.03 * 0.1) - 0.03 * max(1, m / n) ** 0.5 * turned
        made.step()
        adam.step()
    for name, parameter in model.named_parameters():
        expected = rest[name].detach().numpy() if name in rest else now[name]
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-7, atol=1e-9)


def test_matrices_are_torchs_own_up_to_its_half_precision():
    torch.manual_seed(0)
    model, other = (nn.Sequential(nn.Linear(12, 8, bias=False), nn.Linear(8, 12, bias=False)) for _ in range(2))
    other.load_state_dict(model.state_dict())
    weights, made = over(model, lr=0.02, momentum=0.95, weight_decay=0.1, steps=5)
    theirs = torch.optim.Muon(other.parameters(), lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True, ns_steps=5)
    for step in range(5):
        for a, b in zip(model.parameters(), other.parameters(), strict=True):
            grad = torch.randn(a.shape, generator=torch.Generator().manual_seed(step))
            a.grad.copy_(grad)
            b.grad = grad
        made.step(), theirs.step()
    moved = [0.02 * 5 * max(1, len(w) / len(w[0])) ** 0.5 for w in other.parameters()]
    for a, b, far in zip(model.parameters(), other.parameters(), moved, strict=True):
        assert (a - b).abs().max() < 0.03 * far  # theirs is in bf16


def test_a_run_has_two_groups_with_rates_of_their_own_and_resumes(tmp_path):
    run = trainer(*WORDS, "train.steps=4", "model.hidden=[8,8]")
    assert [group["part"] for group in run.optimizer.param_groups] == ["matrix", "rest"]
    assert run.base_lrs == [0.02, 3e-4]
    batches = list(run.loader.epoch(0))
    for batch in batches[:2]:
        run.step(batch)
    again = trainer(*WORDS, "train.steps=4", "model.hidden=[8,8]")
    again.load_state_dict(copy.deepcopy(run.state_dict()))
    for one in (run, again):
        one.step(batches[2])
    assert torch.equal(run.weights.data, again.weights.data)
    assert isinstance(run.optimizer, Muon)


def test_a_model_without_hidden_matrices_is_refused_in_a_line():
    with pytest.raises(ConfigError, match="optim: muon is for hidden matrices, and this model has none"):
        trainer(*WORDS, "model.hidden=[]")
