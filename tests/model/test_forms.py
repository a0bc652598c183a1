"""The forms of well-known networks that papers on small images train: against torchvision, and by counting."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet, vgg

from runner.model.preact_resnet import PreActResNet
from runner.model.resnet_imagenet import ImageNetResNet
from runner.model.vgg import VGG
from tests.model.made import YAMLS, count, target


@pytest.mark.parametrize("depth", [18, 50])
def test_with_the_stem_for_imagenet_it_is_torchvisions(depth):
    theirs = getattr(resnet, f"resnet{depth}")(num_classes=7).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5), nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean), nn.init.uniform_(module.running_var, 0.5, 1.5)
    ours = ImageNetResNet((3, 64, 70), 7, depth).eval()
    state = {f"head{key[2:]}" if key.startswith("fc.") else f"body.{key}": v for key, v in theirs.state_dict().items()}
    assert ours.state_dict().keys() == state.keys()
    ours.load_state_dict(state)
    x = torch.randn(2, 3, 64, 70)
    out = ours(x)
    torch.testing.assert_close(out.logits, theirs(x))
    torch.testing.assert_close(out.logits, out.features @ theirs.fc.weight.T + theirs.fc.bias)


def test_the_stem_is_chosen_by_the_size_of_the_image():
    for shape, stem, small in [((3, 63, 63), "auto", True), ((3, 64, 64), "auto", False), ((3, 64, 63), "auto", True)]:
        assert (ImageNetResNet(shape, 2, stem=stem).body.conv1.kernel_size == (3, 3)) == small
    forced = ImageNetResNet((1, 32, 32), 2, stem="imagenet").body
    assert forced.conv1.kernel_size == (7, 7) and forced.conv1.in_channels == 1
    assert isinstance(forced.maxpool, nn.MaxPool2d)
    x = torch.randn(2, 3, 20, 20)
    body = ImageNetResNet((3, 20, 20), 2).body.eval()
    first = F.relu(body.bn1(F.conv2d(x, body.conv1.weight, padding=1)))  # no pooling: the first stage at full size
    torch.testing.assert_close(body.layer1(first), body.layer1(body.maxpool(F.relu(body.bn1(body.conv1(x))))))
    assert body.layer1(first).shape == (2, 64, 20, 20)


def test_blocks_start_as_the_identity_where_asked():
    model = ImageNetResNet((3, 16, 16), 2, zero_gamma=True)
    x = torch.randn(4, 64, 8, 8).relu()
    torch.testing.assert_close(model.body.layer1(x), x)
    assert not torch.allclose(ImageNetResNet((3, 16, 16), 2).body.layer1(x), x)


COUNTS = {  # of ten classes at 32 pixels, by hand or as their public code prints them
    "resnet18": 11_173_962,  # kuangliu/pytorch-cifar
    "resnet34": 21_282_122,
    "resnet50": 23_520_842,
    "resnet101": 42_512_970,
    "vgg16_bn": 14_728_266,  # kuangliu/pytorch-cifar's VGG16
    "preact_resnet18": 11_171_146 + 2 * 512,  # kuangliu's, which has no last normalisation
    "resnet32": 464_154,  # akamaster/pytorch_resnet_cifar10's 0.46M
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "lenet_300_100": 3072 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10,
}


@pytest.mark.parametrize("name", COUNTS)
def test_sizes(name):
    (path,) = (path for path in YAMLS if path.stem == name)
    cls, node = target(path)
    with torch.device("meta"):
        assert count(cls((3, 32, 32), 10, **node)) == COUNTS[name]


@pytest.mark.parametrize("name", ["vit_tiny", "convnext_atto"])
def test_timms_small_models_take_images_of_cifar(name):
    (path,) = (path for path in YAMLS if path.stem == name)
    cls, node = target(path)
    assert cls((3, 32, 32), 10, **node)(torch.randn(2, 3, 32, 32)).logits.shape == (2, 10)


def test_vgg_is_torchvisions_convolutions_and_one_classifier():
    ours, theirs = VGG((3, 40, 33), 5, depth=13).eval(), vgg.vgg13_bn().eval()
    theirs.features.load_state_dict(
        {k.removeprefix("body.0."): v for k, v in ours.state_dict().items() if "body.0" in k}
    )
    x = torch.randn(2, 3, 40, 33)
    features = theirs.features(x).mean((2, 3))
    torch.testing.assert_close(ours(x).features, features)
    assert VGG((1, 32, 32), 5, depth=11)(torch.randn(2, 1, 32, 32)).logits.shape == (2, 5)


def test_preact_resnet_is_its_blocks_between_a_convolution_and_a_last_normalisation():
    model = PreActResNet((3, 16, 12), 5, blocks=1)
    x = torch.randn(4, 3, 16, 12)
    y = F.conv2d(x, model.body[0].weight, padding=1)
    for block, stride in zip(model.body[1:5], (1, 2, 2, 2), strict=True):
        a = F.relu(F.batch_norm(y, None, None, block.bn1.weight, block.bn1.bias, training=True))
        z = F.conv2d(a, block.conv1.weight, stride=stride, padding=1)
        z = F.relu(F.batch_norm(z, None, None, block.bn2.weight, block.bn2.bias, training=True))
        way = y if block.shortcut is None else F.conv2d(a, block.shortcut.weight, stride=stride)
        y = F.conv2d(z, block.conv2.weight, padding=1) + way
    last = model.body[5]
    y = F.relu(F.batch_norm(y, None, None, last.weight, last.bias, training=True)).mean((2, 3))
    torch.testing.assert_close(model(x).features, y, rtol=1e-3, atol=1e-4)
    assert [block.shortcut is None for block in model.body[1:5]] == [True, False, False, False]
