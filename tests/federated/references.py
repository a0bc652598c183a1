"""The numpy references of federated methods, loaded."""

import importlib.util

import numpy as np

from tests.conftest import ROOT


def load(name):
    path = ROOT / "tests" / "reference" / f"federated_{name}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


close = np.testing.assert_allclose


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def average(x, locals_, sizes):
    """FedAvg."""
    return x + sum(n / sum(sizes) * (y - x) for y, n in zip(locals_, sizes, strict=True))
