"""timm's models as options."""

import warnings

import pytest
import torch
from torch import nn

from runner.model.timm import Timm
from tests.model.made import count


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
