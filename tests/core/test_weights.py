"""The parameters as one vector: views, memory formats, algebra, exact restoration."""

import copy

import pytest
import torch
from torch import nn

from runner.core.weights import ALIGN, Weights


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 36, 7))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_views_follow_the_buffer_and_keep_values_and_format(memory_format):
    model = small().to(memory_format=memory_format)
    before = copy.deepcopy(model)
    weights = Weights(model)
    x = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(model(x), before(x), rtol=0, atol=0)
    assert model[0].weight.is_contiguous(memory_format=memory_format)
    weights.scale_(0.0)
    assert all(not parameter.any() for parameter in model.parameters())
    assert weights.count == sum(parameter.numel() for parameter in before.parameters())
    assert all(place.start % ALIGN == 0 for place in weights.places)


def test_gradients_accumulate_into_the_flat_buffer():
    model = small()
    weights, twin = Weights(model), copy.deepcopy(model)
    x = torch.randn(4, 3, 8, 8)
    for net in (model, twin):
        net.zero_grad(set_to_none=net is twin)
        net(x).square().sum().backward()
    for (_, view), parameter in zip(weights.views(weights.grad), twin.parameters(), strict=True):
        torch.testing.assert_close(view, parameter.grad)
    expected = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in twin.parameters()]))
    torch.testing.assert_close(weights.norm(weights.grad), expected)
    torch.testing.assert_close(weights.dot(weights.grad, weights.grad), expected**2)


def test_load_state_dict_and_restored_keep_the_views():
    model = small()
    weights = Weights(model)
    model.load_state_dict({k: torch.ones_like(v) for k, v in model.state_dict().items()})
    assert weights.data.sum() == weights.count
    saved = weights.clone()
    with pytest.raises(KeyError), weights.restored():
        weights.add_(torch.randn_like(saved), alpha=torch.tensor(0.3))
        raise KeyError
    assert torch.equal(weights.data, saved)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_flatten_is_the_inverse_of_views_and_differentiable(memory_format):
    model = small().to(memory_format=memory_format)
    weights = Weights(model)
    flat = weights.flatten(list(model.parameters()))
    assert torch.equal(flat, weights.data)
    assert flat.requires_grad


def test_shared_parameters_are_taken_once_and_frozen_ones_left_out():
    a = nn.Linear(4, 4, bias=False)
    b = nn.Linear(4, 4)
    b.weight = a.weight
    b.bias.requires_grad_(False)
    weights = Weights(a, b)
    assert weights.count == 16
    assert b.weight is a.weight


def test_an_expanded_parameter_becomes_an_ordinary_one():
    module = nn.Module()
    module.w = nn.Parameter(torch.ones(1, 3).expand(4, 3))
    weights = Weights(module)
    with torch.no_grad():
        module.w[0, 0] = 5.0
    assert weights.data.sum() == 16.0


def test_nothing_to_train_and_mixed_types_are_refused():
    with pytest.raises(ValueError, match="nothing to train"):
        Weights(nn.ReLU())
    with pytest.raises(ValueError, match="one dtype"):
        Weights(nn.Linear(2, 2), nn.Linear(2, 2).double())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_set_grad_copies_adds_and_takes_none_for_zero(memory_format):
    model = small().to(memory_format=memory_format)
    weights = Weights(model)
    parts = [torch.randn_like(parameter) for parameter in weights.parameters]
    weights.grad.fill_(7.0)
    weights.set_grad([*parts[:-1], None])
    for part, parameter in zip([*parts[:-1], torch.zeros_like(parts[-1])], weights.parameters, strict=True):
        assert torch.equal(parameter.grad, part)
    weights.set_grad(parts, add=True)
    for factor, part, parameter in zip([2] * (len(parts) - 1) + [1], parts, weights.parameters, strict=True):
        torch.testing.assert_close(parameter.grad, factor * part)
    assert torch.equal(weights.places[-1].view(weights.flatten([*parts[:-1], None])), torch.zeros_like(parts[-1]))
