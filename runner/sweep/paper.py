"""An experiment's file, read and checked: see `runner.sweep.experiment` for what stands in it."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from runner.command.build import check
from runner.core.mistake import ConfigError, suggest
from runner.core.schema import Count, Natural, NonNegative
from runner.sweep.cells import key_of
from runner.sweep.rows import shown
from runner.sweep.space import Tune
from runner.sweep.space import checked as checked_spaces
from runner.sweep.statistics import quantile


@dataclass
class Printed:
    """A number as the paper prints it, in the unit of the table."""

    value: float
    spread: NonNegative | None = None
    kind: Literal["sd", "se", "ci95"] | None = None
    n: Count | None = None

    @property
    def error(self) -> float | None:
        """The standard error, where the paper says enough for it."""
        if self.spread is None or self.kind is None or (self.n or 0) < 2:
            return None
        return self.spread / {"sd": math.sqrt(self.n), "se": 1, "ci95": quantile(self.n - 1)}[self.kind]

    def text(self, percent: bool) -> str:
        numbers = [x for x in (self.value, self.spread) if x is not None]
        text = " ± ".join(f"{x:.2f}" if percent and round(x, 2) == x else shown(x) for x in numbers)
        said = [] if self.spread is None else [self.kind or "± of what is not said"]
        said += [] if self.n is None else [f"n={self.n}"]
        return f"{text} ({', '.join(said)})" if said else text


@dataclass
class Column:
    """A measure, and overrides where the columns are of different runs."""

    metric: str
    overrides: list[str] = field(default_factory=list)


@dataclass
class Arm:
    """A row: its overrides, what search found them, or what it is to be searched for in, and what the paper prints."""

    tuned: str = ""
    overrides: list[str] = field(default_factory=list)
    space: dict = field(default_factory=dict)
    paper: dict = field(default_factory=dict)


@dataclass
class Experiment:
    """The keys of the file; the top of this module explains them."""

    seeds: list[Natural]
    columns: dict[str, str | dict]
    rows: dict[str, dict]
    recipe: list[str] = field(default_factory=list)
    select: Literal["last", "val", "test"] = "last"
    baseline: str | None = None
    name: str | None = None
    tune: dict | None = None  # once checked: a Tune
    tuning: str | None = None
    sources: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def load(name: str, folders: list[Path]) -> tuple[Path, Experiment]:
    """The file of an experiment and its checked content: `columns`, `rows` and their `paper` as objects. Raises
    ConfigError where the file is none, or says what cannot be."""
    from omegaconf import OmegaConf  # its reader, as for every option: 1e-4 is a number, and a key twice is an error

    known = {
        str(path.relative_to(folder / "experiment").with_suffix("").as_posix()): path
        for folder in reversed(folders)
        for path in sorted((folder / "experiment").glob("**/*.yaml"))
    }
    if name not in known:
        raise ConfigError(f"no experiment '{name}'.{suggest(name, known)} There are: {', '.join(known) or 'none'}")
    path = known[name]
    try:
        node = json.loads(json.dumps(OmegaConf.to_container(OmegaConf.load(path))))  # a row may be named 1
        if not isinstance(node, dict):
            raise ConfigError("it is no mapping of keys")
        return path, checked(node, name)
    except Exception as error:  # the reader has many
        if not isinstance(error, ConfigError | ValueError) and not type(error).__module__.startswith(("yaml", "omega")):
            raise
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from None


def checked(node: dict, name: str) -> Experiment:
    check(node, "experiment", Experiment)
    made = Experiment(**node)
    for key in ("seeds", "columns", "rows"):
        if not getattr(made, key):
            raise ConfigError(f"experiment.{key} is empty")
    if len(set(made.seeds)) < len(made.seeds):
        raise ConfigError(f"experiment.seeds={made.seeds}: a seed stands there twice")
    for column, value in made.columns.items():
        where = f"experiment.columns.{column}"
        value = {"metric": value} if isinstance(value, str) else value
        check(value, where, Column)
        made.columns[column] = Column(**value)
        metric, known = value["metric"], metrics()
        if metric not in known:
            raise ConfigError(f"{where}: no metric '{metric}'.{suggest(metric, known)} There are: {', '.join(known)}")
    for row, value in made.rows.items():
        where = f"experiment.rows.{row}"
        check(value, where, Arm)
        made.rows[row] = arm = Arm(**value)
        if made.tune is None and (arm.space or not arm.tuned):
            raise ConfigError(
                f"{where}: it says by `tuned` what search its settings got, or the file has `tune`"
                + (", which `space` is for" if arm.space else "")
            )
        if arm.space and arm.tuned:
            raise ConfigError(f"{where}: `tuned` leaves it out of the search that `space` is for: one of them")
        for column, printed in arm.paper.items():
            if column not in made.columns:
                raise ConfigError(f"{where}.paper: no column '{column}'.{suggest(column, made.columns)}")
            if not isinstance(printed, dict):
                raise ConfigError(f"{where}.paper.{column}={printed}: write {{value: {printed}}}")
            check(printed, f"{where}.paper.{column}", Printed)
            arm.paper[column] = Printed(**printed)
    if made.baseline is not None and made.baseline not in made.rows:
        hint = suggest(made.baseline, made.rows)
        raise ConfigError(f"experiment.baseline: no row '{made.baseline}'.{hint} There are: {', '.join(made.rows)}")
    for word in (word for part in (made, *made.columns.values(), *made.rows.values()) for word in overrides(part)):
        if key_of(word) in ("seed", "name", "experiment") or key_of(word).startswith("hydra"):
            raise ConfigError(f"'{word}' is no override for a recipe: seeds and name have keys of their own")
    if made.tune is not None:
        check(made.tune, "experiment.tune", Tune)
        made.tune = Tune(**made.tune)
        if not made.tune.metric.startswith("val_") or made.tune.metric not in (known := metrics()):
            raise ConfigError(
                f"experiment.tune.metric={made.tune.metric}: settings are chosen by a measure of the validation split."
                + suggest(made.tune.metric, [name for name in known if name.startswith("val_")])
            )
        rows = {row: None if arm.tuned else arm.space for row, arm in made.rows.items()}
        made.spaces = checked_spaces(made.tune, made.seeds, rows)
    made.name = made.name or name.replace("/", "_")
    return made


def overrides(part: Experiment | Column | Arm) -> list[str]:
    return part.recipe if isinstance(part, Experiment) else part.overrides


def metrics() -> list[str]:
    """The measures that a run's result may have."""
    import torch

    from runner.core.measure import measures
    from runner.engine.final import NAMES

    one, two, six = torch.zeros(1, dtype=torch.long), torch.zeros(1, 2), torch.zeros(1, 6)
    tasks = ((six, one, "classes"), (two, one, "classes"), (two, two, "multilabel"), (two, two, "regression"))
    keys = dict.fromkeys(key for task in tasks for key in measures(*task))
    own = [f"{split}_{key}" for split in ("val", "test") for key in keys]
    return ["train_loss", "train_accuracy", *own, *NAMES, *(f"deployed_{key}" for key in own), "bits_per_weight"]
