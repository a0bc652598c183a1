"""Losses, logits and targets for the tests of this room, and what their references say."""

import importlib
import importlib.util
import inspect
from functools import lru_cache

import pytest
import torch

from runner.command import build
from runner.core.batch import Batch, Output
from tests.conftest import ROOT

KINDS = build.kinds("loss")
OPTIONS = sorted(option for option, kind in KINDS.items() if kind.predicts)
BLIND = sorted(KINDS.keys() - set(OPTIONS))  # they predict nothing, and have a file of tests each

B, C, D = 6, 5, 3

CONTEXT = {"classes": C, "samples": 20, "class_counts": [8, 5, 4, 2, 1], "features": D, "bag": 4}


def context(option):
    """What the data set knows, with as many classes as the option is defined for."""
    classes = says(option, "CLASSES") or C
    return CONTEXT | {"classes": classes, "class_counts": CONTEXT["class_counts"][:classes]}


@lru_cache
def reference(option):
    path = ROOT / "tests" / "reference" / f"loss_{option}.py"
    assert path.exists(), f"conf/loss/{option}.yaml needs an independent formula in {path.relative_to(ROOT)}"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arrays(loss):
    return {name: tensor.detach().numpy().copy() for name, tensor in loss.state_dict().items()}


def expected(option, setting, loss, z, y, held=None):
    """The reference's values, with what it asks for."""
    z, held = z.detach().numpy(), None if held is None else held.numpy()
    return reference(option).reference(**inputs(option, loss, z, y.numpy(), held), **setting)


def inputs(option, loss, z, y, held=None):
    """{name: value} of what the option's reference asks for."""
    given = {**context(option), "logits": z, "y": y, "held": z if held is None else held, "state": arrays(loss)}
    given |= {"index": order(B).numpy(), "features": FEATURES.numpy(), "x": X.numpy()}
    asked = inspect.signature(reference(option).reference).parameters
    return {name: what for name, what in given.items() if name in asked}


def order(rows):
    """Which training samples the rows of a batch are: not in their order, and the two bags of six mixed."""
    return torch.tensor([i for i in (4, 0, 3, 1, 5, 2) if i < rows]) if rows <= B else torch.arange(rows)


def batch(y, index=None):
    return Batch(X[: len(y)], y, order(len(y)) if index is None else index)


def value(loss, logits, y):
    features = FEATURES.to(logits.dtype)[: len(logits)]
    return loss(
        Output(logits, features.reshape(-1, *[1] * (logits.dim() - 2), D).expand(*logits.shape[:-1], D)), batch(y)
    )


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)) * 2


FEATURES = draw(B, D, seed=2).bfloat16().double()  # the same in every dtype

X = draw(B, D, seed=9)

IDS = torch.tensor([0, 4, 2, 2, 1, 3])

SOFT = torch.softmax(draw(B, C, seed=1), -1)

MULTIHOT = torch.tensor(
    [[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 0, 0], [0, 1, 1, 0, 1], [1, 0, 1, 0, 0.0]]
)


def logits(option, kind, *lead, dtype=torch.float64, seed=0):
    width = {"real": 1, "reals": 2}.get(kind, 0) * (says(option, "OUTPUTS") or 1)
    return draw(*(lead or (B,)), width or context(option)["classes"], dtype=dtype, seed=seed)


def kinds(option):
    """The kinds of targets of the option; one without a reference fails when it comes to its values."""
    return says(option, "TARGETS") or ("ids", "soft")


def settings(*wanted):
    """(option, one of its reference's settings, one of its kinds of targets), of the kinds wanted."""
    found = []
    for option in OPTIONS:
        for setting in says(option, "SETTINGS") or [{}]:
            name = "-".join([option, *(f"{k}={v}" for k, v in setting.items())])
            found += [
                pytest.param(option, setting, kind, id=f"{name}-{kind}")
                for kind in kinds(option)
                if kind in wanted or not wanted
            ]
    return found


def says(option, name):
    """What the option's reference says by this name, or None."""
    path = ROOT / "tests" / "reference" / f"loss_{option}.py"
    return getattr(reference(option), name, None) if path.exists() else None
