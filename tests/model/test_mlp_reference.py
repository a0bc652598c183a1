"""The perceptron with a reference class: two classes are one logistic output, more are multinomial regression."""

import math

import numpy as np
import pytest
import torch
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

from runner.core.batch import Batch
from runner.loss.ce import CrossEntropy
from runner.model.mlp_reference import MlpReference


def test_by_hand():
    model = MlpReference((2, 14, 14), 2)
    sizes = [392 * 300, 300, 300 * 300, 300, 300, 1]
    assert [parameter.numel() for parameter in model.parameters()] == sizes
    w1, b1, w2, b2, w3, b3 = (parameter.detach() for parameter in model.parameters())
    for bias in (b1, b2, b3):
        torch.nn.init.uniform_(bias, -1, 1)
    x = torch.randn(5, 2, 14, 14)
    h = ((x.reshape(5, 392) @ w1.T + b1).clamp(min=0) @ w2.T + b2).clamp(min=0)
    out = model(x)
    torch.testing.assert_close(out.features, h)
    assert torch.equal(out.logits[:, 0], torch.zeros(5))
    torch.testing.assert_close(out.logits[:, 1], (h * w3).sum(1) + b3)


def test_initial_weights_are_glorots():
    model = MlpReference((392,), 2)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        else:
            bound = math.sqrt(6 / sum(parameter.shape))  # outputs + inputs
            assert bound * 0.97 < parameter.abs().max() <= bound
            assert parameter.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
            assert abs(parameter.mean().item()) < 5 * bound / math.sqrt(3 * parameter.numel())


def test_cross_entropy_of_two_classes_is_binary_cross_entropy():
    model = MlpReference((7,), 2, [4]).double()
    x, y = 5 * torch.randn(20, 7, dtype=torch.float64), torch.arange(20) % 2
    out = model(x)
    losses = CrossEntropy()(out, Batch(x, y, torch.arange(20)))
    z = out.logits.detach()[:, 1].clone().requires_grad_()
    expected = F.binary_cross_entropy_with_logits(z, y.double(), reduction="none")
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=1e-14)
    (gradient,) = torch.autograd.grad(losses.sum(), out.logits)
    (binary,) = torch.autograd.grad(expected.sum(), z)
    torch.testing.assert_close(gradient[:, 1], binary, rtol=1e-12, atol=1e-14)
    assert torch.equal(out.logits.argmax(-1) == 1, z > 0)


def test_more_classes_are_the_softmax_with_a_reference():
    model = MlpReference((3,), 4, []).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    scores = np.exp(x.numpy() @ model.head.weight.detach().numpy().T + model.head.bias.detach().numpy())
    expected = np.column_stack([np.ones(6), scores]) / (1 + scores.sum(1, keepdims=True))
    np.testing.assert_allclose(model(x).logits.softmax(-1).detach().numpy(), expected, rtol=1e-12)


def test_replicas_under_vmap():
    models = [MlpReference((2, 3), 3, [5]) for _ in range(3)]
    parameters, _ = stack_module_state(models)
    x = torch.randn(3, 4, 2, 3)
    logits = vmap(lambda own, inputs: functional_call(models[0], own, (inputs,)).logits)(parameters, x)
    for k, model in enumerate(models):
        torch.testing.assert_close(logits[k], model(x[k]).logits)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="mlp_reference needs at least 2 classes, got 1; use model=mlp"):
        MlpReference((3,), 1)
