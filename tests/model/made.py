"""What the tests of models count and look up."""

from importlib import import_module

import yaml

from tests.conftest import ROOT

# those that classify; mlp_time, whose output is as large as an input, has tests of its own
YAMLS = sorted(path for path in (ROOT / "conf" / "model").glob("*.yaml") if path.stem != "mlp_time")


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def target(path):
    node = yaml.safe_load(path.read_text())
    module, name = node.pop("_target_").rsplit(".", 1)
    return getattr(import_module(module), name), node
