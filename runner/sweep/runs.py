"""Finished runs as a table reads them: what was typed, what varies between them, and one measure of each."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.record.files import finished, history, read_config, read_json, read_yaml
from runner.record.identity import APART_TRAIN, LATER, apart, earlier
from runner.record.provenance import mixed, remarks
from runner.sweep.cells import key_of

RULES = {
    "last": "at the last epoch",
    "val": "at the epoch that is best on validation",
    "test": "at the epoch that is best on test (selected on test: optimistic)",
}
ABSENT = object()  # a key of a node that this run does not have
OTHER = "of other code or data than there is now"


@dataclass
class Run:
    """One run's folder, read."""

    folder: Path
    config: dict[str, Any]  # dotted key -> value, less what does not change the result
    typed: list[str]  # the overrides that the user gave
    seed: Any
    value: float | None
    missing: str | None  # why there is no value
    metrics: set[str]
    result: dict = field(default_factory=dict)


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys. A list is one value; so is an empty node."""
    if not isinstance(node, dict):
        return {prefix: node}
    flat = {}
    for key, value in node.items():
        flat.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def settings(config: dict) -> dict[str, Any]:
    """What a run computes apart from its seed, as dotted keys. A group counts by its option's name, first."""
    config = earlier(config)
    left_out = apart(config)
    kept = {key: value for key, value in config.items() if key not in left_out and key not in ("seed", "train")}
    if kept.get("checkpoint") is None:  # runs of before there was one are the same
        kept.pop("checkpoint", None)
    kept["train"] = {key: value for key, value in config.get("train", {}).items() if key not in APART_TRAIN}
    choices = {group: option for group, option in config.get("choices", {}).items() if group not in left_out}
    plain = {group: option for group, (option, _) in LATER.items() if group in left_out}
    return {**choices, **plain, **flatten(kept)}


def token(value: Any) -> str:
    return "" if value is ABSENT else json.dumps(value, sort_keys=True)


def measure(folder: Path, select: str, metric: str) -> tuple[float | None, str | None, set[str]]:
    """(value, why there is none, the metrics that there are)."""
    try:
        result = finished(folder)
        if result is None:
            error = read_json(folder / "failed.json")
            if error is not None:
                step = "" if error.get("step") is None else f" at step {error['step']}"
                first = (str(error.get("message")).splitlines() or [""])[0]
                first = first if len(first) <= 120 else f"{first[:116]} ..."
                return None, f"failed{step}: {error.get('type')}: {first}", set()
            if not folder.exists():
                return None, "not started", set()
            records = history(folder)
            return None, f"unfinished after epoch {records[-1].get('epoch')}" if records else "unfinished", set()
    except ValueError as damage:
        return None, str(damage), set()
    measures = result.get({"last": "last", "val": "best_val", "test": "best_test"}[select])
    if not isinstance(measures, dict):
        return None, f"no measures {RULES[select]}", set()
    measures = measures | deployed(result)
    value = measures.get(metric)
    missing = (
        None
        if value is not None
        else f"{metric} is null: not finite, or not defined by the loss"
        if metric in measures
        else f"no {metric}"
    )
    return value, missing, set(measures)


def deployed(result: dict) -> dict[str, float | None]:
    """Measures of what the run ended with: of the file of a quantized one, else of its network."""
    found = result.get("quantization") or {"deployed": result.get("last") or {}, "bits_per_weight": 32.0}
    own = {f"deployed_{key}": value for key, value in found["deployed"].items() if key.startswith(("val_", "test_"))}
    return own | {"bits_per_weight": found["bits_per_weight"]}


def read(folder: Path, select: str, metric: str) -> Run:
    """Raises ValueError where the folder holds no run."""
    config = read_config(folder)
    value, missing, metrics = measure(folder, select, metric)
    result = {} if missing else finished(folder) or {}
    return Run(folder, settings(config), typed(folder), config.get("seed"), value, missing, metrics, result)


def typed(folder: Path) -> list[str]:
    """The overrides that the user gave on the command line; none where their file is damaged."""
    try:
        found = read_yaml(folder / ".hydra" / "overrides.yaml")
    except (ValueError, OSError):
        return []
    return [str(override) for override in found] if isinstance(found, list) else []


def uneven(runs: list[Run], out: Iterable[Path] = ()) -> list[str]:
    """Take the values out of the runs in `out` and of those that were computed by other code, or on other data, than
    the newest of the rest. Returns what else these do not share."""
    for run in runs:
        if run.value is not None and run.folder in out:
            run.value, run.missing = None, OTHER
    whole = {run.folder: run for run in runs if run.value is not None}
    data = {}
    for folder, run in whole.items():
        own = {key: value for key, value in run.config.items() if key.split(".")[0] == "dataset"}
        data[folder] = token(own), token([run.seed, run.config.get("dataset.damage_seed")])
    for folder, why in mixed({folder: run.result for folder, run in whole.items()}, data).items():
        whole[folder].value, whole[folder].missing = None, why
    return remarks(run.result.get("made") for run in whole.values() if run.value is not None)


def varying(runs: list[Run]) -> list[str]:
    """The keys by which the runs differ, apart from their seed.

    A key that the user typed counts. Any other only if it tells runs apart that no earlier key does: `optim=sgd,sam`
    also changes the sharpness and its rho, and one column is enough.
    """
    keys = dict.fromkeys(key for run in runs for key in run.config)
    different = [key for key in keys if len({token(run.config.get(key, ABSENT)) for run in runs}) > 1]
    given = {key_of(override) for run in runs for override in run.typed}
    named = [key for key in different if key in given]
    found = list(named)
    for key in different:
        # what is interpolated from the seed says nothing new
        seeded = all(token(run.config.get(key, run.seed)) == token(run.seed) for run in runs)
        if key not in named and not seeded and len(group(runs, [*found, key])) > len(group(runs, found)):
            found.append(key)
    return found


def group(runs: Iterable[Run], keys: list[str]) -> dict[tuple, list[Run]]:
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(token(run.config.get(key, ABSENT)) for key in keys), []).append(run)
    return groups


def runs_under(folder: Path) -> list[Path]:
    """The run folders directly under `folder`, begun or not."""
    marks = (Path(".hydra", "config.yaml"), Path(".lock"))
    return sorted(path for path in folder.glob("[!.]*") if any((path / mark).exists() for mark in marks))
