"""What the tests of models count and look up."""

from importlib import import_module

import yaml
from torch import nn

from runner.model import Classifier
from tests.conftest import ROOT

# those that classify; those whose output is as large as an input, or has places, have tests of their own
OTHERS = ("mlp_time", "mlp_generator", "gpt", "unet")
YAMLS = sorted(path for path in (ROOT / "conf" / "model").glob("*.yaml") if path.stem not in OTHERS)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def target(path):
    node = yaml.safe_load(path.read_text())
    module, name = node.pop("_target_").rsplit(".", 1)
    return getattr(import_module(module), name), node


class Slim(Classifier):
    """What a residual network has, in three small convolutions: for tests of what options do together."""

    # the keys of the models whose place it takes mean nothing to it
    def __init__(
        self, shape, classes, depth=0, stem="", zero_gamma=False, blocks=0, dropout=0.0, widen=0, pad=False, hidden=()
    ):
        body = nn.Sequential(
            nn.Conv2d(shape[0], 4, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
            Around(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))), nn.ReLU(),
            nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        super().__init__(body, nn.Linear(8, classes))


class Around(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)
