"""Models: published parameter counts by hand, plain transcriptions of the networks, and what every model must do."""

import inspect
import re
import warnings
from copy import deepcopy
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from runner.core.batch import Output
from runner.model import Classifier
from runner.model.cnn import Cnn
from runner.model.lenet import LeNet
from runner.model.mlp import Mlp
from runner.model.resnet import PaddedShortcut, ResNet
from runner.model.timm import Timm
from runner.model.wrn import WideResNet
from tests.conftest import ROOT

YAMLS = sorted((ROOT / "conf" / "model").glob("*.yaml"))
OWN = [path for path in YAMLS if path.stem != "timm"]
# small members of every family, for tests that run them
SMALL = {
    "mlp": lambda shape, classes: Mlp(shape, classes, [16, 8]),
    "linear": lambda shape, classes: Mlp(shape, classes, []),
    "cnn": lambda shape, classes: Cnn(shape, classes, [4, 6], 10),
    "lenet": LeNet,
    "resnet": lambda shape, classes: ResNet(shape, classes, depth=8),
    "wrn": lambda shape, classes: WideResNet(shape, classes, depth=10, widen=2),
}


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def target(path):
    node = yaml.safe_load(path.read_text())
    module, name = node.pop("_target_").rsplit(".", 1)
    return getattr(import_module(module), name), node


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


# -- every option -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_yaml_states_its_source_and_every_argument(path):
    assert re.fullmatch(r"# \S.* -- \S.*", path.read_text().splitlines()[0])
    cls, node = target(path)
    parameters = list(inspect.signature(cls).parameters)
    assert issubclass(cls, Classifier)
    assert parameters[:2] == ["shape", "classes"]
    assert parameters[2:] == list(node)


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.stem)
@pytest.mark.parametrize("shape, classes", [((1, 8, 8), 10), ((1, 28, 28), 10), ((3, 32, 32), 100), ((3, 33, 47), 2)])
def test_output_shapes(path, shape, classes):
    cls, node = target(path)
    if path.stem == "lenet" and shape == (1, 8, 8):
        with pytest.raises(ValueError, match="at least 12 x 12 pixels, got 8 x 8"):
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
    if path.stem.startswith("mlp"):
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


# -- timm -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def timm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pytest.importorskip("timm")


@pytest.mark.parametrize(
    "name, shape, args, size",
    [
        ("resnet18", (1, 8, 8), {}, False),
        ("vit_tiny_patch16_224", (3, 32, 32), {"depth": 2}, True),
        (
            "vit_tiny_patch16_224",
            (1, 28, 28),
            {"depth": 2, "patch_size": 4, "class_token": False, "global_pool": "avg"},
            True,
        ),
        ("deit_tiny_patch16_224", (3, 32, 48), {"depth": 2}, True),
        ("convnext_atto", (3, 32, 32), {"drop_path_rate": 0.1}, False),
        ("mobilenetv3_small_100", (3, 32, 32), {"drop_rate": 0.5}, False),
        ("mixer_s32_224", (3, 32, 32), {}, True),  # its classifier starts at zero
        ("resnetv2_18", (3, 32, 32), {"drop_rate": 0.3}, False),  # its classifier is a 1 x 1 convolution
        ("sequencer2d_s", (3, 32, 32), {"layers": (1, 1, 1, 1)}, True),  # its classifier is inside a pooling head
        ("pvt_v2_b0", (3, 33, 33), {}, False),  # overlapping patches: any size will do
    ],
)
def test_timm_equals_timm(timm, name, shape, args, size):
    """The same weights from the same seed, and the same logits in evaluation and (with dropout) in training."""
    sizes = {"img_size": shape[1:]} if size else {}
    torch.manual_seed(3)
    reference = timm.create_model(name, num_classes=6, in_chans=shape[0], **sizes, **args)
    drawn = torch.get_rng_state()
    torch.manual_seed(3)
    model = Timm(shape, 6, name, args=args)
    assert torch.equal(torch.get_rng_state(), drawn)  # the checks at construction draw nothing
    assert all(module.training for module in model.modules())
    assert count(model) == count(reference)
    x = torch.randn(4, *shape)
    for training in (False, True):
        reference.train(training), model.train(training)
        torch.manual_seed(4)
        expected = reference(x)
        torch.manual_seed(4)
        out = model(x)
        torch.testing.assert_close(out.logits, expected, rtol=1e-4, atol=1e-5)
        assert out.features.shape == (4, model.head.in_features)
        assert torch.equal(model.head(out.features), out.logits)
    with torch.no_grad():  # again with a classifier that is not zero
        model.head.weight.normal_()
        classifier = reference.head.fc if name == "sequencer2d_s" else reference.get_classifier()
        classifier.weight.copy_(model.head.weight.view_as(classifier.weight))
    torch.testing.assert_close(model.eval()(x).logits, reference.eval()(x), rtol=1e-3, atol=1e-4)


def test_timm_needs_a_name():
    for name in (None, ""):
        with pytest.raises(ValueError, match=r"set model\.name="):
            Timm((3, 32, 32), 10, name=name)
    with pytest.raises(ValueError, match=r"timm needs images \(C, H, W\), got shape \(30,\); use model=mlp"):
        Timm((30,), 10, "resnet18")


@pytest.mark.parametrize(
    "name, shape, args, message",
    [
        ("resnet118", (3, 32, 32), {}, r"timm has no model 'resnet118'\. Did you mean .*'resnet18'"),
        ("zzzzzzzzzz", (3, 32, 32), {}, "timm has no model 'zzzzzzzzzz'"),
        ("resnet18.nothing", (3, 32, 32), {}, "timm could not build resnet18.nothing: .*nothing"),
        ("resnet18", (3, 32, 32), {"drop_pth": 0.1}, "timm could not build resnet18: .*drop_pth"),
        ("resnet18", (3, 32, 32), {"num_classes": 3}, "model.args must not set num_classes"),
        ("inception_v3", (3, 32, 32), {}, r"timm's inception_v3 does not take images of shape \(3, 32, 32\): .*size"),
        ("vit_tiny_patch16_224", (1, 28, 28), {"depth": 1}, "patches of 16 x 16 pixels, and 28 x 28 is not a multiple"),
        ("deit_tiny_distilled_patch16_224", (3, 32, 32), {"depth": 1}, "has no single classifier"),
        ("levit_128s", (3, 224, 224), {}, "has no single classifier"),
    ],
)
def test_timm_errors_are_one_line(timm, name, shape, args, message):
    with pytest.raises(ValueError, match=message) as error:
        Timm(shape, 10, name, args=args)
    assert "\n" not in str(error.value)


def test_timm_without_pretrained_weights(timm):
    name = next(name for name in timm.list_models() if not timm.is_model_pretrained(name))
    with pytest.raises(ValueError, match=f"timm has no pretrained weights for {name}"):
        Timm((3, 224, 224), 10, name, pretrained=True)


@pytest.mark.parametrize("behind", [lambda y: 2 * y, lambda y: (y, y), lambda y: y.flip(1)])
def test_timm_model_that_works_on_its_logits_is_refused(monkeypatch, behind):
    """Also where the classifier starts at zero, so that the logits alone would not show it."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.fc = nn.Linear(5, 4)
            nn.init.zeros_(self.fc.weight)
            nn.init.zeros_(self.fc.bias)

        def get_classifier(self):
            return self.fc

        def forward(self, x):
            return behind(self.fc(self.features(x)))

    monkeypatch.setattr("runner.model.timm.create", lambda *args: Model())
    with pytest.raises(ValueError, match="timm's toy has no single classifier behind one feature vector"):
        Timm((3, 8, 8), 4, "toy")
