"""Models: published parameter counts by hand, plain transcriptions of the networks, and what every model must do."""

import inspect
import re
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from runner.command.build import CONTEXT
from runner.core.batch import Output
from runner.model import Classifier
from runner.model.cnn import Cnn
from runner.model.lenet import LeNet
from runner.model.mlp import Mlp
from runner.model.preact_resnet import PreActResNet
from runner.model.resnet import ResNet
from runner.model.resnet_imagenet import ImageNetResNet
from runner.model.timm import Timm
from runner.model.wrn import WideResNet
from tests.model.made import YAMLS, count, target

OWN = [path for path in YAMLS if target(path)[0] is not Timm]

# small members of every family, for tests that run them
SMALL = {
    "mlp": lambda shape, classes: Mlp(shape, classes, [16, 8]),
    "linear": lambda shape, classes: Mlp(shape, classes, []),
    "cnn": lambda shape, classes: Cnn(shape, classes, [4, 6], 10),
    "lenet": LeNet,
    "resnet": lambda shape, classes: ResNet(shape, classes, depth=8),
    "wrn": lambda shape, classes: WideResNet(shape, classes, depth=10, widen=2),
    "imagenet": lambda shape, classes: ImageNetResNet(shape, classes, stem="cifar"),
    "preact": lambda shape, classes: PreActResNet(shape, classes, blocks=1),
}


# -- every option -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_yaml_states_its_source_and_every_argument(path):
    assert re.fullmatch(r"# \S.* -- \S.*", path.read_text().splitlines()[0])
    cls, node = target(path)
    parameters = list(inspect.signature(cls).parameters)
    assert issubclass(cls, Classifier)
    assert parameters[:2] == ["shape", "classes"]
    assert [name for name in parameters[2:] if name not in CONTEXT] == list(node)


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.stem)
@pytest.mark.parametrize("shape, classes", [((1, 8, 8), 10), ((1, 28, 28), 10), ((3, 32, 32), 100), ((3, 33, 47), 2)])
def test_output_shapes(path, shape, classes):
    cls, node = target(path)
    if path.stem == "lenet" and shape == (1, 8, 8):
        with pytest.raises(ValueError, match="at least 12 x 12 pixels, got 8 x 8"):
            cls(shape, classes, **node)
        return
    if path.stem == "vgg16_bn" and shape[1] < 32:
        with pytest.raises(ValueError, match="at least 32 x 32 pixels, got"):
            cls(shape, classes, **node)
        return
    with torch.device("meta"):  # shapes without the arithmetic: wrn_28_10 costs nothing
        model = cls(shape, classes, **node)
        out = model(torch.empty(5, *shape))
    assert out.logits.shape == (5, classes)
    assert out.features.shape == (5, model.head.in_features)


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.stem)
def test_tabular_input(path):
    cls, node = target(path)
    if path.stem.startswith("mlp") or path.stem == "lenet_300_100":
        assert cls((30,), 2, **node)(torch.randn(4, 30)).logits.shape == (4, 2)
        return
    with torch.device("meta"), pytest.raises(ValueError, match=r"needs images \(C, H, W\), got shape \(30,\)") as error:
        cls((30,), 2, **node)
    assert str(error.value).endswith("use model=mlp") and "\n" not in str(error.value)


@pytest.mark.parametrize("name", SMALL)
def test_logits_are_the_head_of_the_features(name):
    model = SMALL[name]((3, 16, 20), 7).eval()
    out = model(torch.randn(4, 3, 16, 20))
    assert isinstance(out, Output)
    assert torch.equal(out.logits, model.head(out.features))
    torch.testing.assert_close(out.logits, out.features @ model.head.weight.T + model.head.bias)


@pytest.mark.parametrize("name", SMALL)
def test_gradient_reaches_every_parameter(name):
    model = SMALL[name]((3, 16, 16), 7)
    F.cross_entropy(model(torch.randn(16, 3, 16, 16)).logits, torch.arange(16) % 7).backward()
    dead = [key for key, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert not dead


@pytest.mark.parametrize("name", SMALL)
def test_evaluation_is_deterministic_and_keeps_samples_apart(name):
    model = SMALL[name]((3, 16, 16), 7)
    x = torch.randn(6, 3, 16, 16)
    first, again = model(x).logits, model(x).logits
    assert torch.equal(first, again)  # training mode: batch statistics, no randomness
    model.eval()
    before = deepcopy(model.state_dict())
    whole = model(x).logits
    assert torch.equal(whole, model(x).logits)
    torch.testing.assert_close(model(x[:2]).logits, whole[:2], rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", SMALL)
def test_replicas_under_vmap(name):
    """Stacked weights and buffers under one vmap give every replica's own logits, gradients and statistics."""
    models = [SMALL[name]((1, 12, 12), 5) for _ in range(3)]
    x, y = torch.randn(3, 4, 1, 12, 12), torch.arange(4)
    parameters, buffers = stack_module_state(models)
    base = deepcopy(models[0]).to("meta")

    def loss(parameters, buffers, x):
        return F.cross_entropy(functional_call(base, (parameters, buffers), (x,)).logits, y)

    losses = vmap(loss, in_dims=(0, 0, 0))(parameters, buffers, x)
    losses.sum().backward()
    for k, model in enumerate(models):
        alone = F.cross_entropy(model(x[k]).logits, y)
        alone.backward()
        torch.testing.assert_close(losses[k], alone, rtol=1e-5, atol=1e-6)
        for key, parameter in model.named_parameters():
            torch.testing.assert_close(parameters[key].grad[k], parameter.grad, rtol=1e-3, atol=1e-5)
        for key, buffer in model.named_buffers():
            torch.testing.assert_close(buffers[key][k], buffer, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", SMALL)
def test_channels_last_and_autocast(name):
    model = SMALL[name]((3, 16, 16), 7).eval()
    x = torch.randn(4, 3, 16, 16)
    expected = model(x).logits
    for dtype, tolerance in ((torch.bfloat16, 0.1), (torch.float16, 0.02)):
        with torch.autocast("cpu", dtype=dtype):
            logits = model(x).logits
        assert logits.dtype == dtype
        torch.testing.assert_close(
            logits.float(), expected, rtol=tolerance, atol=tolerance * expected.abs().max().item()
        )
    model = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["cnn", "resnet", "wrn"])
def test_compiles_as_one_graph(name):
    model = SMALL[name]((3, 12, 12), 7)
    x = torch.randn(4, 3, 12, 12)
    expected = model(x)
    out = torch.compile(model, backend="eager", fullgraph=True)(x)
    torch.testing.assert_close(out.logits, expected.logits)
    torch.testing.assert_close(out.features, expected.features)


# -- mlp --------------------------------------------------------------------------------------------------------------
def test_mlp_by_hand():
    assert count(Mlp((1, 28, 28), 10)) == (784 * 128 + 128) + (128 * 10 + 10) == 101_770
    model = Mlp((2, 3), 4, [5, 6])
    x = torch.randn(7, 2, 3)
    (w1, b1, w2, b2, w3, b3) = (parameter.detach() for parameter in model.parameters())
    h = (x.reshape(7, 6) @ w1.T + b1).clamp(min=0)
    h = (h @ w2.T + b2).clamp(min=0)
    out = model(x)
    torch.testing.assert_close(out.features, h)
    torch.testing.assert_close(out.logits, h @ w3.T + b3)


def test_mlp_without_hidden_layers_is_linear():
    x = torch.randn(3, 1, 2, 2)
    model = Mlp((1, 2, 2), 4, [])
    assert count(model) == 4 * 4 + 4
    assert torch.equal(model(x).features, x.reshape(3, 4))


# -- cnn --------------------------------------------------------------------------------------------------------------
def test_cnn_has_the_published_size():
    """1,663,370 parameters on MNIST: McMahan et al. 2017, section 3."""
    first, second = 1 * 32 * 25 + 32, 32 * 64 * 25 + 64
    hidden, classifier = 7 * 7 * 64 * 512 + 512, 512 * 10 + 10
    assert count(Cnn((1, 28, 28), 10)) == first + second + hidden + classifier == 1_663_370


def test_cnn_by_hand():
    model = Cnn((1, 40, 8), 3, [2, 4], 5)
    x = torch.randn(2, 1, 40, 8)
    (w1, b1, w2, b2, w3, b3, *_) = (parameter.detach() for parameter in model.parameters())
    y = F.max_pool2d(F.conv2d(x, w1, b1, padding=2).relu(), 2)
    y = F.max_pool2d(F.conv2d(y, w2, b2, padding=2).relu(), 2)
    assert y.shape == (2, 4, 10, 2)
    y = y.reshape(2, 4, 5, 2, 2).mean(3)  # 10 rows are more than 8: pairs of rows are averaged; 2 columns stay
    torch.testing.assert_close(model(x).features, F.linear(y.reshape(2, 40), w3, b3).relu())


@pytest.mark.parametrize("side, cells", [(4, 1), (8, 2), (28, 7), (32, 8), (35, 8), (36, 5), (64, 8), (224, 8)])
def test_cnn_at_any_size(side, cells):
    with torch.device("meta"):
        model = Cnn((3, side, side), 2, [1, 1], 1)
        assert model(torch.empty(2, 3, side, side)).logits.shape == (2, 2)
    assert sum(layer.in_features for layer in model.body if isinstance(layer, nn.Linear)) == cells**2


def test_cnn_averages_partial_windows_over_what_they_hold():
    model = Cnn((1, 36, 36), 2, [1, 1], 1)
    pool = next(layer for layer in model.body if isinstance(layer, nn.AvgPool2d))
    assert torch.equal(pool(torch.ones(1, 1, 9, 9)), torch.ones(1, 1, 5, 5))


def test_cnn_errors():
    with pytest.raises(ValueError, match="cnn needs images of at least 4 x 4 pixels, got 3 x 9"):
        Cnn((1, 3, 9), 2)
    with pytest.raises(ValueError, match="must name two widths"):
        Cnn((1, 8, 8), 2, [1, 2, 3])


# -- lenet ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("side", [28, 32])
def test_lenet_has_the_classic_size(side):
    convolutions = (1 * 6 * 25 + 6) + (6 * 16 * 25 + 16)
    layers = (16 * 5 * 5 * 120 + 120) + (120 * 84 + 84) + (84 * 10 + 10)
    assert count(LeNet((1, side, side), 10)) == convolutions + layers == 61_706


def test_lenet_without_padding():
    """28 - 4 = 24, 12, 12 - 4 = 8, 4: 16 * 4 * 4 = 256 inputs to the layer of 120."""
    layers = (256 + 1) * 120 + (120 + 1) * 84 + (84 + 1) * 10
    assert count(LeNet((1, 28, 28), 10, pad=False)) == (25 + 1) * 6 + (6 * 25 + 1) * 16 + layers == 44_426


def test_lenet_by_hand():
    model = LeNet((1, 28, 28), 10)
    x = torch.randn(3, 1, 28, 28)
    w = [parameter.detach() for parameter in model.parameters()]
    y = F.max_pool2d(F.conv2d(F.pad(x, (2, 2, 2, 2)), w[0], w[1]).relu(), 2)
    y = F.max_pool2d(F.conv2d(y, w[2], w[3]).relu(), 2)
    y = F.linear(F.linear(y.reshape(3, 400), w[4], w[5]).relu(), w[6], w[7]).relu()
    out = model(x)
    assert out.features.shape == (3, 84)
    torch.testing.assert_close(out.features, y)
    torch.testing.assert_close(out.logits, F.linear(y, w[8], w[9]))


def test_lenet_smallest_image_is_the_smallest():
    def positions(side):  # conv 5, halve, conv 5, halve, on the padded image
        return ((side + 4 - 4) // 2 - 4) // 2

    assert positions(11) == 0 and positions(12) == 1
    assert LeNet((1, 12, 12), 2)(torch.randn(1, 1, 12, 12)).logits.shape == (1, 2)
    with pytest.raises(ValueError, match="lenet needs images of at least 12 x 12 pixels, got 28 x 11"):
        LeNet((1, 28, 11), 2)
