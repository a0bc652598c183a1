"""A paper's table as one command: what is missing is run, then paper and ours stand side by side.

    python -m runner +experiment=<paper>/<table> [seed=0,1,2] [key=value ...] [--config-dir DIR] [--format pdf]

conf/experiment/<paper>/<table>.yaml, or the same under the user's --config-dir:

    # Gradient starvation, Table 1 -- Pezeshki et al., NeurIPS 2021, arXiv:2011.09468
    select: last               # the epoch whose measures count: last, val (best on validation), test (marked)
    seeds: [0, 1, 2, 3, 4]     # distinct
    recipe:                    # overrides of every run, as on the command line; no seed, no name
      - dataset=colored_mnist
      - optim=adam
    columns:                   # shown name -> key of the measures in result.json ...
      train: train_accuracy
      test: test_accuracy
      other: {metric: test_accuracy, overrides: [dataset.noise_rate=0.1]}  # ... with overrides of its own
    rows:                      # shown name -> one arm
      ERM:
        overrides: [train.steps=1001]
        tuned: the authors' random search; its size is not said   # what search this arm got; every arm says it
        paper:                 # column -> what is printed there; a column without a number is left out
          train: {value: 91.08, spread: 0.43, kind: sd, n: 10}
          test: {value: 23.70, spread: 0.76, kind: sd, n: 10}
      SD:
        overrides: [hook=spectral_decoupling, train.steps=2001]
        tuned: ...
        paper:
          test: {value: 68.40}
    baseline: ERM              # a row; the others are compared with it, paired by seed
    name: pezeshki2021_table1  # the folder under outputs_dir; this, <paper>_<table>, is the default
    tuning: one line on the search of all arms together
    sources: [where a number or a part of the recipe comes from, ...]
    assumed: [what the paper does not say and was chosen here, ...]
    notes: [anything else, ...]

Only `seeds`, `columns` and `rows` (with `tuned` in each) must be there. The first comment is the table's title. Later
overrides win: recipe, column, row, command line. Where no row has a number of a paper, a row is one line of the table.

Printed numbers are in the unit of the table: per cent for accuracies and ECE (an error rate of 2.7 % is an accuracy of
97.3), else as they are. `kind` says what the printed ± is: sd (standard deviation over n restarts), se (standard error)
or ci95 (half of a 95 % interval, taken as Student's); left out where the paper does not say. With kind and n, the
difference ours - paper gets an interval too.
"""

import hashlib
import json
import math
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import yaml

from runner.command.build import check
from runner.command.config import Sweep, refuse_idle
from runner.command.listing import title
from runner.command.spelling import spelled
from runner.core.mistake import ConfigError, suggest
from runner.core.schema import Count, Natural, NonNegative
from runner.record.curves import FORMATS
from runner.record.files import sessions
from runner.record.identity import APART, APART_TRAIN, identity
from runner.sweep import plan as planning
from runner.sweep import table
from runner.sweep.cells import Cell, Composer, counted, distinct, done, key_of
from runner.sweep.ends import anew, stale, warn
from runner.sweep.report import Block, Panel, Report, draw, save
from runner.sweep.statistics import estimate, quantile, welch
from runner.sweep.table import Row, exact, shown

WIDE = "too wide"


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
    """A row: its overrides, what search found them, and what the paper prints, by column."""

    tuned: str
    overrides: list[str] = field(default_factory=list)
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
    tuning: str | None = None
    sources: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def main(argv: list[str], folders: list[Path], run: Callable | None = None) -> int:
    """`python -m runner +experiment=...`: run what is missing, print and save the table.

        argv : the words of the command. folders : the config folders, the user's before the packaged one. run : what
    trains, `runner.sweep.pool.run` unless given.

    Returns the exit status: 0 all that was asked for is there, 1 some failed or missing, 2 a mistake in the command or
    in the file (nothing has been run), 130 or 143 stopped.
    """
    try:
        plan = Plan(argv, folders)
    except ConfigError as error:
        print(f"runner: {error}", file=sys.stderr)
        return 2
    if plan.shows:
        print(f"# {plan.title}: the first of {counted(len(plan.asked))}, {plan.asked[0]}")
        print(yaml.safe_dump(_typed(plan.asked[0].config), sort_keys=False, allow_unicode=True), end="")
        return 0
    if planning.wanted:
        print(plan.title)
        planning.show(plan.asked)
        return 0
    before = sum(map(done, plan.asked))
    try:
        anew(plan.asked)
    except ConfigError as error:
        print(f"runner: {error}", file=sys.stderr)
        return 2
    print(f"{plan.title}\n{len(plan.asked)} runs in {plan.place}, {before} of them done before", flush=True)
    for row, seeds in plan.done_before().items():
        print(f"  {row}: seeds {','.join(map(str, seeds)) or 'none'} done before", flush=True)
    try:
        return carry_out(plan, run)
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        print(f"runner: {error}", file=sys.stderr)
        return 1


def _typed(config: dict) -> dict:
    """A config as it could be typed: without what the engine adds."""
    return {key: value for key, value in config.items() if key != "choices"}


def carry_out(plan: "Plan", run: Callable | None) -> int:
    """Run what was asked for and is not done; then the table. Returns the exit status."""
    states = {}
    warn(stale(plan.asked))
    if not all(map(done, plan.asked)):
        now = f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
        states = (run or pooled)(plan.asked, Sweep(**plan.asked[0].config["sweep"]), plan.place / ".sweeps" / now)
    plan.stale = stale(plan.every)
    made = Comparison(plan)
    print(f"\n{made.text()}{plan.rest()}", end="", flush=True)
    save(made, plan.place, plan.stem)
    draw(made, plan.place / f"{plan.stem}.{plan.format}", "\n".join([plan.title, *plan.departs]))
    print(f"\nsaved as {plan.place / plan.stem}.md, .tex, .csv, .{plan.format}", flush=True)
    why = getattr(states, "why", {})
    for cell in plan.asked:
        if states.get(cell.folder) == "failed":
            trace = cell.folder / "failed.json"
            print(f"failed: {cell}   ({trace if trace.exists() else why.get(cell.folder)})", file=sys.stderr)
    if getattr(states, "signal", ""):
        return states.status
    if "stopped" in states.values():
        return 130
    warn(plan.stale)
    return 0 if all(done(cell) and cell.folder not in plan.stale for cell in plan.asked) else 1


def pooled(cells: list[Cell], settings: Sweep, place: Path) -> dict[Path, str]:
    """`runner.sweep.pool.run`, with the server of its workers begun and ended."""
    from runner.sweep import pool

    pool.warm()
    try:
        return pool.run(cells, settings, place)
    finally:
        pool.cool()


def words_of(argv: list[str]) -> tuple[str, list[str], list[str]]:
    """(the experiment, the overrides for all rows, those of the seed). Raises ConfigError."""
    words, rest = [], iter(argv)
    for word in rest:
        flag, equals, _ = word.partition("=")
        if flag in ("--cfg", "-c") and (word.partition("=")[2] if equals else next(rest, "")) != "job":
            raise ConfigError("of an experiment there is --cfg job, the config of its first run")
        if flag in ("--cfg", "-c", "--resolve"):
            continue
        if flag in ("--config-dir", "-cd", "--format"):
            next(rest if not equals else iter(()), None)
        elif flag in ("-m", "--multirun"):
            raise ConfigError(f"an experiment is a sweep of its own: leave {word} out")
        elif word.startswith("-") or key_of(word).startswith("hydra"):
            raise ConfigError(f"'{word}' does not go with an experiment")
        else:
            words.append(word)
    named = [word.partition("=")[2] for word in words if key_of(word) == "experiment"]
    if len(named) != 1 or "," in named[0]:
        raise ConfigError("one experiment at a time: +experiment=<paper>/<table>")
    own = [word for word in words if key_of(word) == "seed"]
    return named[0], [word for word in words if key_of(word) not in ("experiment", "seed")], own


def format_of(argv: list[str]) -> str:
    """What `--format` says of the figure. Raises ConfigError."""
    found = "png"
    for word, after in zip(argv, [*argv[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        if flag == "--format":
            found = value if equals else after
    if found not in FORMATS:
        raise ConfigError(f"--format {found}: must be one of {', '.join(FORMATS)}")
    return found


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
    made.name = made.name or name.replace("/", "_")
    return made


def overrides(part: Experiment | Column | Arm) -> list[str]:
    return part.recipe if isinstance(part, Experiment) else part.overrides


def metrics() -> list[str]:
    """The measures that a run's result may have."""
    import torch

    from runner.core.measure import measures
    from runner.engine.final import NAMES

    one, two = torch.zeros(1, dtype=torch.long), torch.zeros(1, 2)
    tasks = ((two, one, "classes"), (two, two, "multilabel"), (two, two, "regression"))
    keys = dict.fromkeys(key for task in tasks for key in measures(*task))
    own = [f"{split}_{key}" for split in ("val", "test") for key in keys]
    return ["train_loss", "train_accuracy", *own, *NAMES, *(f"deployed_{key}" for key in own), "bits_per_weight"]


class Plan:
    """An experiment with what the command changes: all its cells, composed and checked.

    cells : (row, column) -> seed -> Cell, for every seed of the file. every : those that are not the same run.
    asked : those that this command runs, each once.
    departures : the command's overrides, where they change what is computed.

    Raises
    ------
    ConfigError
        Any mistake in the command, in the file or in a cell.
    """

    def __init__(self, argv: list[str], folders: list[Path]):
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise ConfigError("an experiment starts processes of its own (sweep.jobs): leave torchrun out")
        self.name, self.typed, seeds = words_of(argv)
        self.format = format_of(argv)
        self.shows = any(word.partition("=")[0] in ("--cfg", "-c") for word in argv)  # and runs nothing
        for folder in folders:
            if not folder.is_dir():
                raise ConfigError(f"--config-dir {folder}: there is no such folder")
        self.folders = folders
        path, self.experiment = load(self.name, folders)
        self.title = f"{title(path) or self.name} ({self.name})"
        self.cells = self.compose(self.typed, self.experiment.seeds)
        refuse_idle((cell.config, self.typed) for cells in self.cells.values() for cell in cells.values())
        self.chosen = choose(seeds[-1], self.experiment.seeds) if seeds else self.experiment.seeds
        several = len({tuple(column.overrides) for column in self.experiment.columns.values()}) > 1
        for (row, column), cells in self.cells.items():
            for cell in cells.values():
                cell.row = cell.row or (f"{row}, {column}" if several else row)
        self.every = distinct(cell for cells in self.cells.values() for cell in cells.values())
        self.asked = [cell for cell in self.every if cell.config["seed"] in self.chosen]
        self.place = self.asked[0].folder.parent
        self.stale: dict[Path, str] = {}  # of `every`: those of other code or data than there is now
        self.departures = [word for word in self.typed if not apart(key_of(word))]
        first = self.experiment.seeds[:1]
        if self.departures and identities(self.cells) == identities(self.compose([], first)):
            self.departures = []
        # so that the recipe's own table is not overwritten by another
        other = hashlib.sha256(json.dumps(sorted(self.departures)).encode()).hexdigest()[:6]
        self.stem = f"experiment-{other}" if self.departures else "experiment"

    def compose(self, typed: list[str], seeds: list[int]) -> dict[tuple[str, str], dict[int, Cell]]:
        """The cells, with the overrides `typed` after all others."""
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        from runner.command.errors import explain

        made, cells, found, whose, compose = self.experiment, {}, {}, {}, composer(self.folders)
        for row, arm in made.rows.items():
            for column, measured in made.columns.items():
                words = [*made.recipe, *measured.overrides, *arm.overrides, f"name={made.name}", *typed]
                words = {key_of(word): word for word in words}.values()  # of two for one key, the later
                words = spelled(words, self.folders, sweep=False)
                try:
                    for word in words:
                        if compose.parse(word).is_sweep_override():
                            raise ConfigError(f"'{word}' is several values: what varies is said by the file's rows")
                    if tuple(words) not in found:  # columns without overrides of their own are of the same runs
                        found[tuple(words)] = {seed: compose([*words, f"seed={seed}"]) for seed in seeds}
                    cells[row, column] = found[tuple(words)]
                    first = cells[row, column][seeds[0]]
                    if "val" in (made.select, measured.metric[:3]) and not first.config["dataset"].get("val", True):
                        raise ConfigError(f"column '{column}' needs a validation split, and dataset.val is 0")
                    if (other := whose.setdefault(first.folder, row)) != row:
                        raise ConfigError(f"with these overrides its runs are those of row '{other}'")
                except (ConfigError, HydraException, OmegaConfBaseException) as error:
                    said = str(error) if isinstance(error, ConfigError) else explain(error, words, self.folders)
                    raise ConfigError(f"{self.name}, row '{row}': {said}") from error
        return cells

    @property
    def departs(self) -> list[str]:
        """The line that says what is not as in the recipe; none where all is."""
        return [f"departs from the recipe: {' '.join(self.departures)}"] if self.departures else []

    def done_before(self) -> dict[str, list[int]]:
        """Row -> those of the asked seeds of which all its runs are done."""
        left = {(row, seed) for (row, _), cells in self.cells.items() for seed, cell in cells.items() if not done(cell)}
        return {row: [seed for seed in self.chosen if (row, seed) not in left] for row in self.experiment.rows}

    def command(self, cell: Cell) -> str:
        """What one would type to get this run alone, in the same folder."""
        return shlex.join(["python", "-m", "runner", *self.own_folders, *cell.overrides])

    @property
    def own_folders(self) -> list[str]:
        return [word for folder in self.folders[:-1] for word in ("--config-dir", str(folder))]

    def rest(self) -> str:
        """How many runs are not done, of all seeds, and the command that runs them; empty where there are none."""
        left = [cell for cell in self.every if not done(cell)]
        if not left:
            return ""
        open_seeds = {cell.config["seed"] for cell in left}
        seeds = [seed for seed in self.experiment.seeds if seed in open_seeds]
        words = ["python", "-m", "runner", *self.own_folders, f"+experiment={self.name}", *self.typed]
        words += [f"seed={','.join(map(str, seeds))}"] if len(seeds) < len(self.experiment.seeds) else []
        return f"\nwhat is missing, {counted(len(left))}:\n{shlex.join(words)}\n"


def composer(folders: list[Path]) -> Composer:
    """What makes cells, with the options of the user's folders too."""
    from hydra import compose, initialize_config_dir

    own = ",".join(json.dumps(f"file://{folder.absolute()}") for folder in folders[:-1])
    path = [f"hydra.searchpath=[{own}]"] if own else []

    def whole(words: list[str]):
        with initialize_config_dir(str(folders[-1].absolute()), version_base="1.3"):
            return compose("config", [*words, *path], return_hydra_config=True)

    return Composer(whole)


def choose(word: str, seeds: list[int]) -> list[int]:
    """The seeds that `seed=0,1` or `seed=range(3)` names. Raises ConfigError where the experiment lacks one."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException:
        override = None
    several = override is not None and override.is_sweep_override()
    chosen = [*override.sweep_iterator()] if several else [override and override.value()]
    for seed in chosen:
        if seed not in seeds:
            raise ConfigError(f"{word}: the experiment's seeds are {','.join(map(str, seeds))}")
    return chosen


def apart(key: str) -> bool:
    """Whether a key is no part of a run's identity."""
    return key.partition(".")[0] in APART or (key.startswith("train.") and key[len("train.") :] in APART_TRAIN)


def identities(cells: dict) -> list[str]:
    """Of the first seed of every row and column."""
    return [identity(next(iter(of_seed.values())).config) for of_seed in cells.values()]


def reach(printed: list[Printed]) -> float | None:
    """How far apart the numbers are that a paper prints of one measure, from its smallest to its largest; where it
    prints one, or the same for all rows, that number itself. An interval that is wider and holds one of them would hold
    the others as well: it cannot tell. None without a number, or with 0 alone.
    """
    values = [one.value for one in printed]
    if not values:
        return None
    return max(values) - min(values) or abs(values[0]) or None


@dataclass
class Entry(Row):
    """One measure of one row, with what the paper prints of it."""

    printed: Printed | None = None
    reach: float | None = None  # how wide an interval may be that still tells the table's numbers apart

    @property
    def gap(self) -> float | None:
        """Ours - paper, in the unit of the table."""
        return None if self.printed is None or not self.values else self.scale * self.mean - self.printed.value

    @property
    def margin(self) -> float | None:
        """Half of the 95 % interval of `gap` (Welch), where both sides have an error."""
        if self.gap is None or self.printed.error is None:
            return None
        return welch(estimate(self.scaled), self.printed.error, self.printed.n)

    @property
    def inside(self) -> bool | str | None:
        """Whether the paper's number lies in our interval; WIDE where it does, and so would any other."""
        return self.judge(self.half_width and self.scale * self.half_width)

    @property
    def agrees(self) -> bool | str | None:
        """Whether the interval of `gap` holds 0; WIDE where it does, and would for any other number."""
        return self.judge(self.margin)

    def judge(self, half: float | None) -> bool | str | None:
        if self.gap is None or half is None:
            return None
        if abs(self.gap) > half:
            return False
        return True if self.reach is None or 2 * half <= self.reach else WIDE

    def judged(self) -> list[str]:
        """The cells of difference, inside and agrees."""
        if self.gap is None:
            return ["-"] * 3
        digits, error = (".2f", ".2f") if self.percent else (".3g", ".2g")
        gap = f"{self.gap:+{digits}}" + ("" if self.margin is None else f" ± {self.margin:{error}}")
        words = {None: "n < 2", True: "yes", False: "no", WIDE: WIDE}
        return [gap, words[self.inside], "-" if self.printed.error is None else words[self.agrees]]


class Comparison(Report):
    """Paper and ours: every row of an experiment by every column, and every row against the baseline.

    Where the file has no printed number, a row of the experiment is one line, with the measures side by side.
    """

    def __init__(self, plan: Plan):
        self.plan, self.experiment = plan, plan.experiment
        made, self.entries = plan.experiment, {}
        for (row, column), cells in plan.cells.items():
            metric = made.columns[column].metric
            entry = Entry(metric, {"row": row, "measure": column}, printed=made.rows[row].paper.get(column))
            for seed, cell in cells.items():
                value, missing, _ = table.measure(cell.folder, made.select, metric)
                missing = missing or plan.stale.get(cell.folder) and table.OTHER
                if missing:
                    entry.missing.append(f"seed {seed} ({missing})")
                else:
                    entry.values.append(value)
                    entry.seeds.append(seed)
            self.entries[row, column] = entry
        for column in made.columns:
            rows = [self.entries[row, column] for row in made.rows]
            apart = reach([entry.printed for entry in rows if entry.printed])
            for entry in rows:
                entry.reach = apart
            if not made.baseline:
                continue
            for entry in rows:
                entry.base = self.entries[made.baseline, column]
            table.compare(rows)

    @property
    def header(self) -> str:
        made = self.experiment
        whose = "ours: " if self.printed else ""
        lines = [
            self.plan.title,
            f"{whose}{table.INTERVAL}, measured {table.RULES[made.select]}; seeds {','.join(map(str, made.seeds))}",
        ]
        if self.printed:
            lines.append(
                "paper: ± as it is explained there; inside: the paper's number lies in our interval; Welch: the 95 % "
                "interval of ours - paper (±, from the paper's spread and n) holds 0; "
                f"{WIDE}: it does, but is wider than the paper's numbers of this measure are apart (of one number: "
                "than that), so it tells nothing"
            )
        if made.baseline:
            lines.append(f"minus {made.baseline}: {table.PAIRED} the comparisons of the same measure")
        lines += [f"tuning: {made.tuning}"] if made.tuning else []
        lines += [f"tuning of {row}: {arm.tuned}" for row, arm in made.rows.items()]
        return "\n".join([*lines, *self.plan.departs])

    @property
    def printed(self) -> bool:
        """Whether the file has any number of a paper."""
        return any(arm.paper for arm in self.experiment.rows.values())

    @property
    def ours(self) -> str:
        return "ours, selected on test" if self.experiment.select == "test" else "ours"

    def where(self, entry: Entry) -> list[str]:
        return [entry.keys["row"], entry.keys["measure"] + (" (%)" if entry.percent else "")]

    def blocks(self) -> list[Block]:
        if not self.printed:
            return self.wide()
        lines = [["row", "measure", "paper", self.ours, "n", "ours - paper", "inside", "Welch"]]
        for entry in self.entries.values():
            paper = entry.printed.text(entry.percent) if entry.printed else "-"
            own = table.with_interval(entry.estimate, entry.percent)
            lines.append([*self.where(entry), paper, own, table.count(entry), *entry.judged()])
        found = [Block(2, lines)]
        if self.experiment.baseline and len(self.experiment.rows) > 1:
            lines = [["row", "measure", f"minus {self.experiment.baseline}", "pairs", "p", "p (Holm)"]]
            rows = [entry for entry in self.entries.values() if entry.base is not entry]
            found.append(Block(2, lines + [[*self.where(entry), *table.comparison(entry)] for entry in rows]))
        return found

    def wide(self) -> list[Block]:
        """A line for every row, a column for every measure. The uncorrected p are in the CSV file."""
        made, marked = self.experiment, ", selected on test" if self.experiment.select == "test" else ""
        by_row = {row: [self.entries[row, column] for column in made.columns] for row in made.rows}
        first = next(iter(by_row.values()))
        lines = [["row", *(self.where(entry)[1] + marked for entry in first), "n"]]
        for row, entries in by_row.items():
            counts = ", ".join(dict.fromkeys(map(table.count, entries)))
            lines.append([row, *(table.with_interval(entry.estimate, entry.percent) for entry in entries), counts])
        found = [Block(1, lines)]
        if made.baseline and len(by_row) > 1:
            heads = ((f"{self.where(entry)[1]} minus {made.baseline}", "p (Holm)") for entry in first)
            lines = [["row", *(head for pair in heads for head in pair), "pairs"]]
            for row in (row for row in by_row if row != made.baseline):
                compared = [table.comparison(entry) for entry in by_row[row]]
                pairs = ", ".join(dict.fromkeys(pairs for _, pairs, *_ in compared))
                lines.append([row, *(cell for gap, *_, holm in compared for cell in (gap, holm)), pairs])
            found.append(Block(1, lines))
        return found

    def remarks(self) -> list[str]:
        made, lacking = self.experiment, {}
        for (row, column), entry in self.entries.items():
            if entry.missing:
                lacking.setdefault((row, "; ".join(entry.missing)), []).append(column)
        found = [f"missing {row}, {' and '.join(columns)}: {what}" for (row, what), columns in lacking.items()]
        several = any(column.overrides for column in made.columns.values())
        how = {}  # command of the first seed -> whose it is
        for (row, column), cells in self.plan.cells.items():
            how.setdefault(self.plan.command(next(iter(cells.values()))), f"{row}, {column}" if several else row)
        found += [f"{whose}: {command}" for command, whose in how.items()]
        found += [f"assumed, not said by the paper: {text}" for text in made.assumed]
        found += [f"source: {text}" for text in made.sources]
        found += [f"note: {text}" for text in made.notes]
        return found + self.provenance()

    def provenance(self) -> list[str]:
        """By what code and on what the runs were computed, as their last sessions noted it."""
        found: dict[str, int] = {}
        for cell in filter(done, self.plan.every):
            session = (sessions(cell.folder) or [{}])[-1]
            git = session.get("git") or {}
            code = (
                f"commit {git['commit'][:10]}{' with changes' if git['dirty'] else ''}" if git else "an unknown commit"
            )
            line = f"by {code} on {session.get('device_name', 'an unknown device')}"
            found[line] = found.get(line, 0) + 1
        return [f"{count} runs computed {line}" for line, count in sorted(found.items())]

    def records(self) -> list[dict]:
        found = []
        for entry in self.entries.values():
            printed = entry.printed or Printed(None)
            record = {**entry.keys, "metric": entry.metric, "unit": "%" if entry.percent else ""}
            record |= {"select": self.experiment.select, "paper": exact(printed.value)}
            record |= {
                "paper_spread": exact(printed.spread),
                "paper_kind": printed.kind or "",
                "paper_n": printed.n or "",
            }
            record |= table.ours(entry)
            record |= {"difference": exact(entry.gap), "welch_ci95_half_width": exact(entry.margin)}
            record |= {"paper_inside": given(entry.inside), "welch_holds_0": given(entry.agrees)}
            if self.experiment.baseline:
                record |= {"baseline": self.experiment.baseline, **table.against(entry)}
            found.append(record | {"missing": "; ".join(entry.missing)})
        return found

    def panels(self) -> list[Panel]:
        found = []
        for column in self.experiment.columns:
            entries = [self.entries[row, column] for row in self.experiment.rows]
            rows = [
                (entry.keys["row"], entry.scaled, entry.printed and (entry.printed.value, entry.printed.spread))
                for entry in entries
            ]
            unit = " (%)" if entries[0].percent else ""
            mark = ", selected on test" if self.experiment.select == "test" else ""
            wide = {entry.keys["row"] for entry in entries if entry.inside == WIDE}
            found.append(Panel(f"{column}{unit}{mark}", rows, wide, entries[0].percent))
        return found


def given(value: Any) -> str:
    """For CSV: empty where there is nothing."""
    return "" if value is None else shown(value)
