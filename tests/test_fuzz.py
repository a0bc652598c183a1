"""Every key over fourteen values, in this process: a run that begins, or one line, and never anything else."""

import copy
import itertools
import math
import random

import pytest

from runner.__main__ import main
from runner.command.config import LISTS, Train, check_all, without_effect
from runner.command.listing import GROUPS
from runner.core.distributed import device
from runner.core.mistake import ConfigError
from runner.engine.assemble import Elsewhere, assemble, prepare
from runner.engine.diagnose import NonFinite
from runner.record.identity import identity
from scripts.packing import forms
from tests.test_compose import OTHER
from tests.tiny import compose

VALUES = [None, "", 0, -1, 1, 1e300, math.inf, math.nan, True, "word", [], {}, 10**25, [1, "a", None, 2.5]]
SMALL = ["dataset.subset=60", "train.batch_size=8", "train.steps=2", "model.hidden=[8,8,8]"]
BUNDLED = {
    "digits",
    "breast_cancer",
    "wine",
    "diabetes",
    "multi_digits",
    "gaussians25",
    "digit_masks",
}  # the data sets that need no files
BUILT = {"mlp", "mlp_reference", "mlp_time", "mlp_generator", "gpt", "unet"}  # others are checked, not built
TOP = ["name", "seed", "device", "checkpoint", "data_dir", "cache_dir", "outputs_dir"]


NODES = [("", "")] + [(group, option) for group in GROUPS for option in forms(group)]


def cases(nodes: list[tuple[str, str]]) -> list[tuple[list[str], tuple[str, ...], object]]:
    """(what is composed, the path of a key in the config, its value), of these options; ('', '') is the engine."""
    keys = []
    for group, option in nodes:
        if not group:
            keys += [([], (key,)) for key in TOP]
            keys += [([], (node, key)) for node in ("train", "sweep") for key in compose()[node]]
            continue
        chosen = chosen_with(group, option)
        node = compose(*chosen)[group]
        if group in LISTS:
            node = node.get(option, {})
        path = (group, option) if group in LISTS else (group,)
        keys += [(chosen, (*path, key)) for key in node if node]
    return [(chosen, path, value) for (chosen, path), value in itertools.product(keys, VALUES)]


def chosen_with(group: str, option: str) -> list[str]:
    more = {"timm": ["model.name=test_resnet"], "hf": ["dataset.id=a/b"]}.get(option, [])
    if group == "loss" and option in OTHER:
        more = [f"dataset={OTHER[option]}"]
    if group == "federated" and option != "none":
        more = ["federated.clients=2", "federated.rounds=2", "federated.minimum=2"]
    return [f"{group}={option}", *more]


def fate(chosen: list[str], path: tuple[str, ...], value) -> str:
    """'checked', 'begun' or what the ConfigError says; any other exception is this test's failure."""
    small = [word for word in SMALL if not (path[0] == "model" and word.startswith("model."))]
    config = copy.deepcopy(compose(*small, *chosen))
    node = config
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = copy.deepcopy(value)
    try:
        check_all(config)
        identity(config)
        without_effect(config, [f"{'.'.join(path)}=1"])
        if (
            config["choices"]["dataset"] not in BUNDLED
            or config["choices"]["model"] not in BUILT
            or path[0] == "device"
        ):
            return "checked"
        train, where = Train(**config["train"]), device("cpu")
        prepare(config["seed"], train, where)
        trainer, *_ = assemble(config, train, where, Elsewhere(None))
        if config["choices"]["federated"] == "none" and not train.compile:
            for batch in itertools.islice(trainer.loader.epoch(0), 2):
                trainer.step(batch)
            for step in (0, 1):
                trainer.schedule(step, trainer.steps, trainer.steps_per_epoch)
        return "begun"
    except ConfigError as error:
        line = str(error)
        assert line and "\n" not in line and len(line) < 1000, line
        return line
    except NonFinite:
        return "begun"


def every(chosen_cases) -> None:
    wrong = []
    for chosen, path, value in chosen_cases:
        try:
            fate(chosen, path, value)
        except Exception as error:
            wrong.append(f"{' '.join(chosen)} {'.'.join(path)}={value!r}: {type(error).__name__}: {str(error)[:200]}")
    assert not wrong, f"{len(wrong)}:\n" + "\n".join(wrong)


def test_a_sample_of_every_key_over_fourteen_values():
    draw = random.Random(5)
    every(draw.sample(cases([("", ""), *draw.sample(NODES[1:], 12)]), 80))


@pytest.mark.slow
def test_every_key_over_fourteen_values():
    every(cases(NODES))


@pytest.mark.parametrize("key", ["seed", "model.hidden", "hook"])
def test_what_is_typed_is_a_run_or_one_line(key, capsys, monkeypatch, tmp_path):
    """As words of the command, where Hydra reads them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("runner.engine.run.run", lambda *_: None)
    for value in VALUES:
        typed = f"{key}={'null' if value is None else value}"
        status = main(["optim=adam", typed])
        out, err = capsys.readouterr()
        assert (status, out, err.count("\n")) in ((0, "", 0), (2, "", 1)), (typed, err)


def test_the_fuzz_finds_what_it_is_for(monkeypatch):
    """A class that takes a number of any kind and breaks on it is not a fate."""
    from runner.schedule.constant import Constant

    monkeypatch.setattr(Constant, "factor", lambda self, progress, epoch: [][1])
    with pytest.raises(AssertionError, match="IndexError"):
        every([(["schedule=constant"], ("schedule", "warmup"), 1)])
