"""What the tests of models count and look up."""

from importlib import import_module

import yaml

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
