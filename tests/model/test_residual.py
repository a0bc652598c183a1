"""Residual networks, He et al.'s and Zagoruyko and Komodakis': sizes, blocks and first weights by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from runner.model.resnet import PaddedShortcut, ResNet
from runner.model.wrn import WideResNet
from tests.model.made import YAMLS, count, target


# -- resnet -----------------------------------------------------------------------------------------------------------
def test_resnet20_parameters():
    stem = 3 * 16 * 9 + 2 * 16
    one = 6 * 16 * 16 * 9 + 6 * 2 * 16
    two = 16 * 32 * 9 + 5 * 32 * 32 * 9 + 6 * 2 * 32
    three = 32 * 64 * 9 + 5 * 64 * 64 * 9 + 6 * 2 * 64
    assert count(ResNet((3, 32, 32), 10)) == stem + one + two + three + 64 * 10 + 10 == 269_722


@pytest.mark.parametrize("depth, millions", [(20, "0.27"), (32, "0.46"), (44, "0.66"), (56, "0.85"), (110, "1.7")])
def test_resnet_sizes_of_the_paper(depth, millions):
    """He et al. 2016, table 6."""
    with torch.device("meta"):
        model = ResNet((3, 32, 32), 10, depth)
    weighted = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weighted) == depth
    assert f"{count(model) / 1e6:.{len(millions) - 2}f}" == millions


@pytest.mark.parametrize("side", [8, 7])
def test_option_a_shortcut(side):
    x = torch.randn(2, 3, side, side)
    expected = torch.zeros(2, 6, (side + 1) // 2, (side + 1) // 2)
    for i in range(expected.shape[2]):
        for j in range(expected.shape[3]):
            expected[:, :3, i, j] = x[:, :, 2 * i, 2 * j]
    shortcut = PaddedShortcut(2, 3)
    assert torch.equal(shortcut(x), expected)
    assert not list(shortcut.parameters())


def random_norms(model):
    """Scales and shifts that a swapped or missing batch normalisation would show in."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)


def norm(x, weight, bias):
    """Batch normalisation with the batch's statistics, eps 1e-5."""
    mean = x.mean((0, 2, 3), keepdim=True)
    var = ((x - mean) ** 2).mean((0, 2, 3), keepdim=True)
    return (x - mean) / (var + 1e-5).sqrt() * weight[None, :, None, None] + bias[None, :, None, None]


def test_resnet_by_hand():
    model = ResNet((3, 9, 12), 4, depth=14)  # two blocks a stage
    random_norms(model)
    x = torch.randn(5, 3, 9, 12)
    w = iter([parameter.detach() for parameter in model.parameters()])
    y = norm(F.conv2d(x, next(w), padding=1), next(w), next(w)).relu()
    for stride in (1, 1, 2, 1, 2, 1):
        z = norm(F.conv2d(y, next(w), stride=stride, padding=1), next(w), next(w)).relu()
        z = norm(F.conv2d(z, next(w), padding=1), next(w), next(w))
        if stride == 2:
            y = y[:, :, ::2, ::2]
            y = torch.cat([y, torch.zeros_like(y)], 1)
        y = (z + y).relu()
    assert y.shape == (5, 64, 3, 3)
    y = y.mean((2, 3))
    out = model(x)
    torch.testing.assert_close(out.features, y, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(out.logits, F.linear(y, next(w), next(w)), rtol=1e-3, atol=1e-4)
    assert next(w, None) is None


def test_resnet_initial_weights():
    model = ResNet((3, 32, 32), 100)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.15)
    assert not model.head.bias.any()


@pytest.mark.parametrize("depth", [2, 18, 21])
def test_resnet_depth(depth):
    with pytest.raises(ValueError, match=rf"depth of 6n \+ 2, such as 20, 32, 44, 56 or 110, got {depth}"):
        ResNet((3, 32, 32), 10, depth)


# -- wide resnet ------------------------------------------------------------------------------------------------------
def wide_stage(inputs, outputs, blocks):
    """Batch norms have two numbers a channel; the first block has the 1 x 1 shortcut."""
    first = 2 * inputs + inputs * outputs * 9 + 2 * outputs + outputs * outputs * 9 + inputs * outputs
    other = 2 * (2 * outputs + outputs * outputs * 9)
    return first + (blocks - 1) * other


@pytest.mark.parametrize("name, n, k, total", [("wrn_28_10", 4, 10, 36_479_194), ("wrn_16_8", 2, 8, 10_961_370)])
def test_wrn_parameters(name, n, k, total):
    (path,) = (path for path in YAMLS if path.stem == name)
    cls, node = target(path)
    with torch.device("meta"):
        model = cls((3, 32, 32), 10, **node)
    stages = wide_stage(16, 16 * k, n) + wide_stage(16 * k, 32 * k, n) + wide_stage(32 * k, 64 * k, n)
    assert count(model) == 3 * 16 * 9 + stages + 2 * 64 * k + 64 * k * 10 + 10 == total


@pytest.mark.parametrize(
    "depth, widen, millions",
    [
        *[(40, 1, 0.6), (40, 2, 2.2), (40, 4, 8.9), (40, 8, 35.7), (28, 10, 36.5), (28, 12, 52.5)],
        *[(22, 8, 17.2), (22, 10, 26.8), (16, 8, 11.0), (16, 10, 17.1)],
    ],
)
def test_wrn_sizes_of_the_paper(depth, widen, millions):
    """Zagoruyko and Komodakis 2016, table 4."""
    with torch.device("meta"):
        model = WideResNet((3, 32, 32), 10, depth, widen)
    assert round(count(model) / 1e6, 1) == millions


def test_wrn_block_is_pre_activated():
    model = WideResNet((3, 8, 8), 10, depth=16, widen=2)
    random_norms(model)
    changing, same = model.body[3], model.body[4]  # the second stage: 32 to 64 channels with stride 2, then 64 to 64
    x = torch.randn(4, 32, 8, 8)
    a = norm(x, changing.bn1.weight, changing.bn1.bias).relu()
    y = F.conv2d(a, changing.conv1.weight, stride=2, padding=1)
    y = F.conv2d(norm(y, changing.bn2.weight, changing.bn2.bias).relu(), changing.conv2.weight, padding=1)
    y = y + F.conv2d(a, changing.shortcut.weight, stride=2)  # the projection sees the activated input
    torch.testing.assert_close(changing(x), y, rtol=1e-3, atol=1e-4)
    z = F.conv2d(norm(y, same.bn1.weight, same.bn1.bias).relu(), same.conv1.weight, padding=1)
    z = F.conv2d(norm(z, same.bn2.weight, same.bn2.bias).relu(), same.conv2.weight, padding=1)
    torch.testing.assert_close(same(y), y + z, rtol=1e-3, atol=1e-4)  # the identity sees the raw input


def test_wrn_ends_with_norm_relu_and_mean():
    model = WideResNet((3, 9, 12), 10, depth=10, widen=1)
    random_norms(model)
    x = torch.randn(4, 3, 9, 12)
    y = F.conv2d(x, model.body[0].weight, padding=1)
    for block in model.body[1:4]:
        y = block(y)
    assert y.shape == (4, 64, 3, 3)
    last = model.body[4]
    torch.testing.assert_close(
        model(x).features, norm(y, last.weight, last.bias).relu().mean((2, 3)), rtol=1e-3, atol=1e-4
    )


def test_wrn_initial_weights():
    """models/utils.lua of szagoruyko/wide-residual-networks at ae6d0d0: math.sqrt(2 / (kW * kH * nInputPlane))."""
    model = WideResNet((3, 32, 32), 10, depth=10, widen=10)  # of 28-10 the first block of every stage
    block = model.body[1]
    expected = {model.body[0]: 0.272, block.conv1: 0.118, block.shortcut: 0.354}
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            found, spread = module.weight.std().item(), 4 / (2 * module.weight.numel()) ** 0.5  # four standard errors
            assert found == pytest.approx((2 / fan_in) ** 0.5, rel=spread)
            if module in expected:
                assert found == pytest.approx(expected.pop(module), rel=spread)
    assert not expected
    assert not model.head.bias.any()


def test_wrn_dropout():
    torch.manual_seed(1)
    plain = WideResNet((3, 8, 8), 10, depth=10, widen=1)
    torch.manual_seed(1)
    model = WideResNet((3, 8, 8), 10, depth=10, widen=1, dropout=0.5)
    x = torch.randn(4, 3, 8, 8)
    assert not torch.equal(model(x).logits, model(x).logits)
    plain, model = plain.eval(), model.eval()
    model.load_state_dict(plain.state_dict())
    assert torch.equal(model(x).logits, plain(x).logits)
    dropped = []
    block = model.body[1].train()
    block.conv2.register_forward_pre_hook(lambda module, args: dropped.append((args[0] == 0).float().mean().item()))
    block(torch.randn(64, 16, 8, 8))
    assert dropped[0] == pytest.approx(0.75, abs=0.02)  # ReLU zeroes half of a normalised input, dropout half the rest


@pytest.mark.parametrize("depth", [4, 20, 27])
def test_wrn_depth(depth):
    with pytest.raises(ValueError, match=rf"depth of 6n \+ 4, such as 16, 22, 28 or 40, got {depth}"):
        WideResNet((3, 32, 32), 10, depth)
