"""What the engine itself reads. The signature of each class is the schema of its node, checked by `build.check`."""

import re
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from runner.command.build import check, fits, idle, locate, misfit, settled, short
from runner.command.listing import GROUPS, MANY
from runner.core.mistake import ConfigError, suggest
from runner.core.schema import Count, Natural, Positive, When

LISTS = MANY
SINGLES = tuple(group for group in GROUPS if group not in LISTS)  # groups of which one option is chosen


@dataclass
class Train:
    """The node `train`.

    epochs : passes over the training set. steps : updates, instead of epochs, where not null.
    batch_size : samples per update over all devices. accumulate : micro-batches that a device's share is split into.
    drop_last : leave out an epoch's last, smaller batch. precision : `auto` is bf16 on a GPU that has it, else fp32.
    channels_last : the memory format of images and convolutions; `auto`: on a CPU, where the model has convolutions.
    threads : of torch on a CPU; `auto` is one for small work, else as many as there are cores or OMP_NUM_THREADS says.
        How many there are decides how sums are rounded.
    deterministic : the same run twice gives the same bits on one device (slower on a GPU).
    workers : loader processes for streamed data sets. eval_batch_size : samples per evaluation batch and device.
    eval_every : epochs between evaluations; the last epoch is always evaluated.
    test : whether the test split is measured; a trial of a search needs no such measures, and is to know none.
    patience : evaluations in a row without a better one on validation, after which the run ends; null: none do.
    best_by : the measure of a split that chooses its best epoch, such as nll; null: the first, accuracy of classes.
    keep : after which steps weights are kept as step_<n>.pt: none, ends, log (1, 2, 4, ... too), so many, or a list.
    save_minutes : minutes between saves within an epoch; the end of every epoch saves too.
    """

    epochs: Annotated[Count, When("steps", None)] = 20
    steps: Count | None = None
    batch_size: Count = 64
    accumulate: Count = 1
    drop_last: bool = False
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    compile: bool = False
    channels_last: Literal["auto"] | bool = "auto"
    threads: Literal["auto"] | Count = "auto"
    deterministic: bool = False
    workers: Natural = 4
    eval_batch_size: Count = 1000
    eval_every: Count = 1
    test: bool = True
    patience: Count | None = None
    best_by: str | None = None
    keep: Literal["none", "ends", "log"] | Count | list[Natural] = "none"
    save_minutes: Positive = 10.0


@dataclass
class Sweep:
    """The node `sweep`: how many runs at once, and how. It changes no run's numbers beyond rounding, nor its identity.

    jobs : worker processes; `auto` is `jobs_per_gpu` for every GPU where there are any, else one for every core.
    pack : replicas that one process trains side by side where the runs differ in numbers alone; `auto` measures.
    on_error : `stop` starts no further run after the first that failed.
    """

    jobs: Literal["auto"] | Count = "auto"
    jobs_per_gpu: Annotated[Count, When("jobs", "auto")] = 1
    pack: Literal["auto", "off", False] | Count = "auto"  # False: what `off` is in YAML and in Python
    on_error: Literal["continue", "stop"] = "continue"

    def __post_init__(self):
        self.pack = "off" if self.pack is False else self.pack


@dataclass
class Root:
    """What stands at the top level beside the groups and `train`.

    checkpoint : where the weights are from that the run starts with, see `runner.engine.start`; null: a random start.
    """

    name: str
    seed: Natural
    device: str
    checkpoint: str | None
    data_dir: str | None
    cache_dir: str
    outputs_dir: str


def check_all(config: dict) -> None:
    """Every node of a composed config, before data, device or disk are touched. Raises ConfigError."""
    root = {key: value for key, value in config.items() if key not in (*GROUPS, "train", "sweep", "choices")}
    for key, value in root.items():
        if isinstance(value, dict):
            raise ConfigError(f"no group '{key}'. The groups are: {', '.join(GROUPS)}")
    known = Root.__dataclass_fields__
    for key in root:
        if key not in known:
            shown = ", ".join([*known, "train", "sweep"])
            hint = suggest(key, (*known, "train", "sweep", "experiment", *GROUPS))
            raise ConfigError(f"no key '{key}'.{hint} At the top level there are: {shown} and the groups")
    hints = typing.get_type_hints(Root, include_extras=True)
    for key in known:
        if key not in root:
            raise ConfigError(f"{key} is missing: it was taken away, and every run needs one")
        config[key] = value = settled(root[key], hints[key])
        if wrong := misfit(value, hints[key]):
            raise ConfigError(f"{key}={short(value)}: must be {wrong}")
    if config["device"].startswith("mps"):
        raise ConfigError(f"device={config['device']}: Apple's GPUs have no float64, which sums need; set device=cpu")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", config["device"]):
        raise ConfigError(f"device={config['device']}: must be one of auto, cpu, cuda, cuda:<number>")
    for key, schema, example in (("train", Train, "epochs=20"), ("sweep", Sweep, "jobs=2")):
        if not isinstance(config.get(key), dict):
            raise ConfigError(f"{key}={short(config.get(key))}: it has keys of its own, such as {key}.{example}")
        check(config[key], key, schema)
    name = config["name"]
    if not name or "/" in name or "\0" in name or name.startswith("."):
        raise ConfigError(f"name={short(name)}: it is one folder under {config['outputs_dir']}/, without '/'")
    if len(name.encode()) > 200:
        raise ConfigError(f"name={short(name)}: a folder's name is at most 200 bytes long")
    for group in SINGLES:
        node = config.get(group)
        if not isinstance(node, dict) or "_target_" not in node:
            raise ConfigError(f"{group}={short(node)}: an option needs a '_target_', the class to build")
        checked(node, group, group)
    for group in LISTS:
        for option, node in (config[group] or {}).items():
            if option == "_target_" and isinstance(node, str):
                raise ConfigError(
                    f"{group}: the YAML with _target_: {node} begins with '# @package {group}.<its name>', as those in "
                    f"conf/{group} do; this one does not"
                )
            if not isinstance(node, dict) or "_target_" not in node:
                raise ConfigError(f"no option '{group}.{option}' with a '_target_'; choose with {group}=[a,b]")
            checked(node, group, f"{group}.{option}")


def checked(node: dict, group: str, where: str) -> None:
    target = locate(node["_target_"], where)
    fits(group, target, where)
    check(node, where, target)


def without_effect(config: dict, overrides: list[str]) -> dict[str, str]:
    """Of the keys that were typed those that do nothing in this run, as another one silences them: key -> why.

    config : checked. A part of the run that takes no notice of others' keys has them as `silences`.
    """
    typed = [key for word in overrides for key in _keys(word)]
    nodes = [(group, config[group]) for group in SINGLES]
    nodes += [(f"{group}.{option}", node) for group in LISTS for option, node in config[group].items()]
    found = {}
    for key, schema in (("train", Train), ("sweep", Sweep)):
        found |= idle(config[key], key, schema, typed)
    for where, node in nodes:
        target = locate(node["_target_"], where)
        found |= idle(node, where, target, typed) if any(key.startswith(f"{where}.") for key in typed) else {}
        choice = config["choices"].get(where)
        found |= {
            key: f"{key} does nothing with {where}={choice}: {why}"
            for key, why in getattr(target, "silences", {}).items()
            if key in typed
        }
    return found


def refuse_idle(cells: Iterable[tuple[dict, list[str]]]) -> None:
    """ConfigError where a typed key does nothing in any of the (config, overrides) of one command's sweep.

    A run alone refuses what `refuse_typed` does, and says the others as notices: it may be a cell of a sweep in which
    they act elsewhere, and is the same run then.
    """
    found: dict[str, str] | None = None
    for config, overrides in cells:
        here = without_effect(config, overrides)
        found = here if found is None else {key: why for key, why in found.items() if key in here}
        if not found:
            return
    for why in (found or {}).values():
        raise ConfigError(why)


def refuse_typed(config: dict, overrides: list[str]) -> None:
    """The same of a run alone."""
    typed = [key for word in overrides for key in _keys(word)]
    for why in idle(config["train"], "train", Train, typed).values():
        raise ConfigError(why)


def _keys(word: str) -> list[str]:
    """The keys that an override sets."""
    key, _, value = word.lstrip("+").partition("=")
    if not value.startswith("{") or key in SINGLES:
        return [key]
    from runner.command.words import parse

    found = parse(word).value()
    return [f"{key}.{name}" for name in found] if isinstance(found, dict) else [key]


def sources(config: dict) -> dict[str, str | None]:
    """Where data sets are looked for: what a data set is built with beside its own node."""
    data_dir = config["data_dir"] and str(Path(config["data_dir"]).expanduser().absolute())
    return {"data_dir": data_dir, "cache_dir": str(Path(config["cache_dir"]).expanduser().absolute())}
