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
    tune: {...}                # how the rows are tuned that have no `tuned`: see `runner.sweep.tuning`
    name: pezeshki2021_table1  # the folder under outputs_dir; this, <paper>_<table>, is the default
    tuning: one line on the search of all arms together
    sources: [where a number or a part of the recipe comes from, ...]
    assumed: [what the paper does not say and was chosen here, ...]
    notes: [anything else, ...]

Only `seeds`, `columns` and `rows` (with `tuned` in each, or `tune`) must be there. The first comment is the table's
title. Later overrides win: recipe, column, row, what was found, command line. Where no row has a number of a paper, a
row is one line of the table.

Printed numbers are in the unit of the table: per cent for accuracies and ECE (an error rate of 2.7 % is an accuracy of
97.3), else as they are. `kind` says what the printed ± is: sd (standard deviation over n restarts), se (standard error)
or ci95 (half of a 95 % interval, taken as Student's); left out where the paper does not say. With kind and n, the
difference ours - paper gets an interval too.
"""

import hashlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import yaml

from runner.command.config import Sweep, refuse_idle
from runner.command.listing import title
from runner.command.spelling import spelled
from runner.core.mistake import ConfigError
from runner.record.curves import FORMATS
from runner.record.identity import identity
from runner.sweep import plan as planning
from runner.sweep import webpage
from runner.sweep.cells import Cell, Composer, counted, distinct, done, key_of
from runner.sweep.comparison import Comparison, apart
from runner.sweep.ends import anew, stale, warn
from runner.sweep.paper import load
from runner.sweep.report import draw, save
from runner.sweep.space import words as as_words
from runner.sweep.tuning import Tuning, search


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
    print(plan.title, flush=True)
    if plan.tuning is not None:
        try:
            if status := tuned(plan, nothing if planning.wanted else run or pooled):
                return 0 if planning.wanted else status
        except ConfigError as error:
            print(f"runner: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            return 130
    if planning.wanted:
        planning.show(plan.asked)
        return 0
    before = sum(map(done, plan.asked))
    try:
        anew(plan.asked)
    except ConfigError as error:
        print(f"runner: {error}", file=sys.stderr)
        return 2
    print(f"{len(plan.asked)} runs in {plan.place}, {before} of them done before", flush=True)
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


def tuned(plan: "Plan", run: Callable) -> int:
    """Tune the rows, and give each what was found for it. Returns the exit status; 0: the table can be made."""
    place = plan.place.with_name(plan.tuning_name) / ".sweeps" / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
    if status := search(plan.tuning, run, place):
        if planning.wanted:
            print(f"then, with what is found, the table's {counted(len(plan.asked))}")
        return status
    plan.settle({row: as_words(plan.tuning.best(row).settings) for row in plan.tuning.trials})
    for row in plan.tuning.trials:
        plan.experiment.rows[row].tuned = plan.tuning.told(row)
    plan.experiment.tuning = "; ".join([plan.tuning.header, *filter(None, [plan.experiment.tuning])])
    return 0


def nothing(cells: list[Cell], settings: Sweep, place: Path) -> dict:
    """In place of what trains, where a plan is asked for: what would be run now."""
    planning.show(cells)
    return {}


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
    if plan.tuning is not None:
        plan.tuning.save(plan.place / f"{plan.stem}-tuning.csv")
    draw(made, plan.place / f"{plan.stem}.{plan.format}", "\n".join([plan.title, *plan.departs]))
    print(f"\nsaved as {plan.place / plan.stem}.md, .tex, .csv, .{plan.format}", flush=True)
    print(webpage.offered(plan.place, made, [cell.folder for cell in plan.every]), flush=True)
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
    from runner.sweep import pool, process

    process.warm()
    try:
        return pool.run(cells, settings, place)
    finally:
        process.cool()


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
        self.cell = composer(folders)
        self.chosen = choose(seeds[-1], self.experiment.seeds) if seeds else self.experiment.seeds
        self.settle(None if self.experiment.tune else {})
        self.tuning = None
        if self.experiment.tune:
            for word in self.typed:
                if any(key_of(word) in space for space in self.experiment.spaces.values()):
                    raise ConfigError(f"{word}: tuning chooses it; take it out of the file's space, or leave it out")
            self.tuning_name = f"{self.place.name}_tuning"
            self.tuning = Tuning(self.experiment.tune, self.experiment.spaces, self.trial)

    def settle(self, won: dict[str, list[str]] | None) -> None:
        """Compose the cells, with what tuning found for each row; None: it is still to come."""
        self.won = won
        self.cells = self.compose(self.typed, self.experiment.seeds)
        refuse_idle((cell.config, self.typed) for cells in self.cells.values() for cell in cells.values())
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
        made, cells, found, whose = self.experiment, {}, {}, {}
        for row in made.rows:
            for column, measured in made.columns.items():
                words = self.words(row, measured.overrides, (self.won or {}).get(row, []), typed)
                with self.explained(row, words):
                    if tuple(words) not in found:  # columns without overrides of their own are of the same runs
                        found[tuple(words)] = {seed: self.cell([*words, f"seed={seed}"]) for seed in seeds}
                    cells[row, column] = found[tuple(words)]
                    first = cells[row, column][seeds[0]]
                    needs = made.select == "val" or measured.metric.startswith("val") or made.tune is not None
                    if needs and not first.config["dataset"].get("val", True):
                        what = "tuning" if made.tune is not None else f"column '{column}'"
                        raise ConfigError(f"{what} needs a validation split, and dataset.val is 0")
                    if self.won is not None and (other := whose.setdefault(first.folder, row)) != row:
                        raise ConfigError(f"with these overrides its runs are those of row '{other}'")
        return cells

    def trial(self, row: str, settings: dict, seed: int) -> list[Cell]:
        """The runs of a trial of tuning, one for each different set of overrides of the columns."""
        found = []
        for overrides in dict.fromkeys(tuple(column.overrides) for column in self.experiment.columns.values()):
            own = [*self.typed, "train.test=false", f"name={self.tuning_name}"]
            words = self.words(row, list(overrides), as_words(settings), own)
            with self.explained(row, words):
                found.append(self.cell([*words, f"seed={seed}"]))
                found[-1].row = " ".join([f"{row},", *as_words(settings), *overrides])
        return found

    def words(self, row: str, column: list[str], found: list[str], typed: list[str]) -> list[str]:
        """All overrides of a row's runs; of two for one key, the later."""
        made = self.experiment
        words = [*made.recipe, *column, *made.rows[row].overrides, *found, f"name={made.name}", *typed]
        return spelled({key_of(word): word for word in words}.values(), self.folders, sweep=False)

    @contextmanager
    def explained(self, row: str, words: list[str]) -> Iterator[None]:
        """What cannot be composed becomes one line that says in which row. Raises ConfigError."""
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        from runner.command.errors import explain

        try:
            for word in words:
                if self.cell.parse(word).is_sweep_override():
                    raise ConfigError(f"'{word}' is several values: what varies is said by the file's rows")
            yield
        except (ConfigError, HydraException, OmegaConfBaseException) as error:
            said = str(error) if isinstance(error, ConfigError) else explain(error, words, self.folders)
            raise ConfigError(f"{self.name}, row '{row}': {said}") from error

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


def identities(cells: dict) -> list[str]:
    """Of the first seed of every row and column."""
    return [identity(next(iter(of_seed.values())).config) for of_seed in cells.values()]
