"""That the references of losses see what they are given, and are given what varies."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from runner.core.batch import Output
from tests.loss.made import (
    CONTEXT,
    FEATURES,
    IDS,
    MULTIHOT,
    OPTIONS,
    SOFT,
    B,
    C,
    X,
    batch,
    inputs,
    kinds,
    logits,
    order,
    reference,
)
from tests.loss.test_loss import REAL, make, targets


def changed(what, name):
    """It with every number of it, or of one of its parts, another one; `None` where there is nothing to change."""
    if isinstance(what, dict):
        return {key: changed(part, key) for key, part in what.items()} or None
    if name == "y" and np.asarray(what).dtype.kind == "i":
        return (what + 1) % (what.max() + 1)
    if name in ("index", "bag"):  # other samples of the same number; other bags
        return (what + 3) % CONTEXT["samples"] if name == "index" else what // 2
    if name == "class_counts":
        return [what[0] + 7, *what[1:]]
    what = np.asarray(what)
    return what + np.random.default_rng(0).uniform(0.1, 0.3, what.shape) if what.dtype.kind == "f" else what


def far(found, from_):
    return not np.allclose(found, from_, rtol=1e-6, atol=1e-9)


def test_the_batches_vary_in_every_input():
    for rows in (X, FEATURES, SOFT, MULTIHOT, logits("ce", "ids")):
        assert len(rows.unique(dim=0)) == B
    for labels in (IDS, REAL):
        assert 1 < len(labels.unique()) < B  # with ties
    assert order(B).unique().tolist() == list(range(B)) and (order(B).diff() < 0).any()
    assert len(set(CONTEXT["class_counts"])) == C


@pytest.mark.parametrize("option", OPTIONS)
def test_no_reference_is_blind(option):
    """The values of a reference depend on everything that it asks for, at the batches of this file, in some setting: a
    test that cannot see an input accepts any formula of it. And on what the loss itself depends in a batch, the
    reference does."""
    seen, needed = set(), {}
    for setting in reference(option).SETTINGS:
        for kind in kinds(option):
            loss, z, y = make(option, **setting), logits(option, kind), targets(option, kind)
            given = inputs(option, loss, z.numpy(), y.numpy())
            at = reference(option).reference(**given, **setting)
            for name, what in given.items():
                needed.setdefault(name, None)
                found = reference(option).reference(**given | {name: changed(what, name)}, **setting)
                if far(found, at):
                    seen.add(name)
            out, own = Output(z, FEATURES), batch(y)
            plain = loss(out, own).detach()
            for name, (other, moved) in {
                "features": (Output(z, torch.from_numpy(changed(FEATURES.numpy(), "features"))), own),
                "x": (out, replace(own, x=torch.from_numpy(changed(X.numpy(), "x")))),
                "index": (out, replace(own, index=(own.index + 3) % CONTEXT["samples"])),
            }.items():
                if far(loss(other, moved).detach(), plain):
                    assert name in given, f"the loss depends on {name} in {setting}, and its reference does not"
    assert seen >= needed.keys() - {"classes", "samples"}
