"""How the arms of an experiment are tuned: by one rule, as many trials for each, on validation alone.

    tune:
      metric: val_accuracy        # of the validation split; a trial does not even measure test
      select: last                # the last epoch, or the best by that measure
      trials: 12                  # for every row
      seeds: [100]                # of the trials, none of the table's; several: their mean counts
      sampler: grid               # grid; random and tpe are Optuna's: pip install -e ".[tune]"
      extend: 2                   # how often a grid may be widened at whose edge a winner is
      space:                      # key -> values, or a range: {log: [low, high]}, {linear: ...}, {whole: ...}
        optim.lr: {log: [1e-4, 1]}
    rows:
      SAM: {overrides: [sharpness=sam], space: {sharpness.rho: [0.02, 0.05, 0.1, 0.2]}}

A row's `space` has keys of its own beside those for all, or other values for one of them; null takes one away. A row
with `tuned` is not tuned. In a grid, a range has as many points as the lists of its row leave of `trials`, evenly
spaced; every row has `trials` points exactly. Where columns have overrides of their own, a trial is one run for each,
and their mean counts. Trials are runs like any others, in `<name>_tuning`; one that diverges is the worst there is.

A grid is widened by one value at the side at whose edge a winner is, for all rows alike: so only keys of the space for
all are, in which every row has the same list. Any other winner at an edge is marked.
"""

import csv
import hashlib
import io
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.command.config import Sweep
from runner.core.mistake import ConfigError
from runner.core.output import near
from runner.record.files import finished, history, read_json, write_atomic
from runner.sweep.cells import Cell, counted, distinct, done
from runner.sweep.ends import anew, stale, warn
from runner.sweep.space import Range, Tune, listed, rounded, wider, words

TOGETHER = 4  # trials that tpe asks for at once: the same search on any number of cores


@dataclass
class Trial:
    """Settings of one row and what they came to; higher is better where the measure rises."""

    settings: dict[str, Any]
    cells: list[Cell]
    value: float | None = None  # None: diverged, or not done


class Asker:
    """Settings for a row, one after another, by Optuna; the same for the same row, seed and values."""

    def __init__(self, tune: Tune, space: dict[str, list | Range], row: str, rising: bool):
        try:
            import optuna
        except ImportError:
            raise ConfigError(
                f'tune.sampler={tune.sampler} needs Optuna: pip install -e ".[tune]"; or choose tune.sampler=grid'
            ) from None
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        seed = int(hashlib.sha256(f"{tune.seeds} {row}".encode()).hexdigest()[:8], 16)
        kinds = {"random": optuna.samplers.RandomSampler, "tpe": optuna.samplers.TPESampler}
        own = {"constant_liar": True} if tune.sampler == "tpe" else {}
        self.optuna, self.asked = optuna, []
        sampler = kinds[tune.sampler](seed=seed, **own)
        self.study = optuna.create_study(sampler=sampler, direction="maximize" if rising else "minimize")
        self.kinds = {key: self.kind(spec) for key, spec in space.items()}

    def kind(self, spec: list | Range):
        of = self.optuna.distributions
        if isinstance(spec, list):
            return of.CategoricalDistribution(range(len(spec)))
        if spec.kind == "whole":
            return of.IntDistribution(int(spec.low), int(spec.high))
        return of.FloatDistribution(spec.low, spec.high, log=spec.kind == "log")

    def ask(self, space: dict[str, list | Range]) -> dict[str, Any]:
        trial = self.study.ask(self.kinds)
        self.asked.append(trial)
        return {key: self.value(spec, trial.params[key]) for key, spec in space.items()}

    @staticmethod
    def value(spec: list | Range, found: Any) -> Any:
        """A list's place is its value; a fraction has four digits, so that it can be typed."""
        if isinstance(spec, list):
            return spec[found]
        return found if spec.kind == "whole" else rounded(found, 4)

    def tell(self, values: list[float | None]) -> None:
        for trial, value in zip(self.asked, values, strict=True):
            if value is None:
                self.study.tell(trial, state=self.optuna.trial.TrialState.FAIL)
            else:
                self.study.tell(trial, value)
        self.asked = []


class Tuning:
    """The search of all rows of an experiment.

    tune, spaces : see `runner.sweep.space.checked`. compose : (row, settings, seed) -> the runs of a trial.

    trials : row -> those so far, in their order. spaces : as they are after widening.
    """

    def __init__(self, tune: Tune, spaces: dict[str, dict], compose: Callable[[str, dict, int], list[Cell]]):
        from runner.core.measure import rises

        self.tune, self.spaces, self.compose = tune, {row: dict(space) for row, space in spaces.items()}, compose
        self.trials: dict[str, list[Trial]] = {row: [] for row in spaces}
        self.better = 1 if rises(tune.metric) else -1
        self.widened = 0

    def rounds(self) -> Iterator[list[Trial]]:
        """Trials that can be run together; their values are to be there before the next ones are asked for."""
        if self.tune.sampler == "grid":
            yield self.added()
            while self.widened < self.tune.extend and self.widen():
                self.widened += 1
                yield self.added()
            return
        askers = {row: Asker(self.tune, space, row, self.better > 0) for row, space in self.spaces.items()}
        at_once = self.tune.trials if self.tune.sampler == "random" else TOGETHER
        for begun in range(0, self.tune.trials, at_once):
            size, new = min(at_once, self.tune.trials - begun), {}
            for row, asker in askers.items():
                new[row] = [self.trial(row, asker.ask(self.spaces[row])) for _ in range(size)]
                self.trials[row] += new[row]
            yield [trial for of_row in new.values() for trial in of_row]
            for row, asker in askers.items():
                asker.tell([trial.value for trial in new[row]])

    def added(self) -> list[Trial]:
        """The points of the grids that are not among the trials yet."""
        new = []
        for row, space in self.spaces.items():
            known = [trial.settings for trial in self.trials[row]]
            points = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
            fresh = [self.trial(row, point) for point in points if point not in known]
            self.trials[row] += fresh
            new += fresh
        return new

    def trial(self, row: str, settings: dict) -> Trial:
        return Trial(settings, [cell for seed in self.tune.seeds for cell in self.compose(row, settings, seed)])

    def widen(self) -> bool:
        """Give the keys that all rows share one more value where a winner is at an edge. Whether there was one."""
        sides = {
            (key, side)
            for row in self.spaces
            for key, side in self.edges(row)
            if all(space.get(key) == self.spaces[row][key] for space in self.spaces.values())
        }
        found = False
        for key, side in sorted(sides):
            values = next(iter(self.spaces.values()))[key]
            new = wider(values, side)
            wide = [*([new] if side == 0 else []), *values, *([new] if side else [])]
            if new is None or not self.fits(key, new):
                continue
            found = True
            for space in self.spaces.values():
                space[key] = wide
        return found

    def fits(self, key: str, value: float) -> bool:
        """Whether every row can have this value: 1.3 is no share."""
        try:
            for row in self.spaces:
                self.compose(row, self.trials[row][0].settings | {key: value}, self.tune.seeds[0])
        except ConfigError:
            return False
        return True

    def read(self, trials: list[Trial]) -> list[Cell]:
        """Take in what the runs of these trials came to. Returns those that are neither done nor diverged."""
        left = []
        for trial in trials:
            values = [self.value(cell) for cell in trial.cells if done(cell)]
            open_ = [cell for cell in trial.cells if not settled(cell)]
            left += open_
            whole = len(values) == len(trial.cells) and None not in values
            trial.value = sum(values) / len(values) if whole else None
        return left

    def value(self, cell: Cell) -> float | None:
        """Raises ConfigError where the run has no such measure."""
        last, lines = finished(cell.folder)["last"] or {}, []
        if self.tune.select == "best":
            lines = history(cell.folder)
        found = [line[self.tune.metric] for line in [*lines, last] if self.tune.metric in line]
        if not found:
            there = ", ".join(key for key in last if key.startswith("val_")) or "none"
            raise ConfigError(f"tune.metric={self.tune.metric}: a trial has no such measure; of validation: {there}")
        finite = [value for value in found if value is not None]
        return max(finite, key=lambda value: self.better * value) if finite else None

    def best(self, row: str) -> Trial | None:
        """The first of the best trials; None where all diverged."""
        found = [trial for trial in self.trials[row] if trial.value is not None]
        return max(found, key=lambda trial: self.better * trial.value) if found else None

    def edges(self, row: str) -> list[tuple[str, int]]:
        """(key, side) of the lists of numbers at whose first (0) or last (1) value the winner is."""
        best, found = self.best(row), []
        for key, values in self.spaces[row].items() if best else ():
            if isinstance(values, list) and len(values) > 2 and wider(values, 1) is not None:
                found += [(key, side) for side in (0, 1) if best.settings[key] == values[-side]]
        return found

    # ---- what is said of it

    @property
    def header(self) -> str:
        tune, first = self.tune, next(iter(self.spaces))
        count = len(self.trials[first])
        seeds = ",".join(map(str, tune.seeds))
        when = "at the last epoch" if tune.select == "last" else "at the best epoch by it"
        how = {"grid": "every point of a grid", "random": "drawn at random", "tpe": "asked for by TPE"}[tune.sampler]
        wide = f", {tune.trials} before it was widened {self.widened} of {tune.extend} times" if self.widened else ""
        of = f" (mean of {len(self.trials[first][0].cells)} runs each)" if len(self.trials[first][0].cells) > 1 else ""
        return (
            f"{count} trials for every row that is tuned, {how}{wide}, by {tune.metric} {when}, seed {seeds}{of}; test "
            "was not measured"
        )

    def told(self, row: str) -> str:
        """The winner, its neighbours, the space, and whether the winner is at an edge."""
        best, space = self.best(row), self.spaces[row]
        tried = "; ".join(f"{key} of {listed(spec)}" for key, spec in space.items())
        lost = sum(trial.value is None for trial in self.trials[row])
        diverged = f"; {lost} diverged" if lost else ""
        if best is None:
            return f"every trial diverged; {tried}"
        parts = [f"{_told(best.settings)}: {self.shown(best)}"]
        if near := [f"{_told(one)} {self.shown(trial)}" for one, trial in self.neighbours(row, best)]:
            parts.append(f"beside it {', '.join(near)}")
        parts += [f"{'smallest' if side == 0 else 'largest'} {key} tried: AT AN EDGE" for key, side in self.edges(row)]
        return f"{'; '.join(parts)}; {tried}{diverged}"

    def neighbours(self, row: str, best: Trial) -> Iterator[tuple[dict, Trial]]:
        """Of a grid: the trials that differ from the best in one key, by one place of its list."""
        for key, values in self.spaces[row].items() if self.tune.sampler == "grid" else ():
            at = values.index(best.settings[key])
            for value in values[max(at - 1, 0) : at + 2]:
                if value != best.settings[key]:
                    settings = best.settings | {key: value}
                    yield {key: value}, next(one for one in self.trials[row] if one.settings == settings)

    def shown(self, trial: Trial) -> str:
        if trial.value is None:
            return "diverged"
        return f"{100 * trial.value:.2f} %" if "accuracy" in self.tune.metric else f"{trial.value:.4g}"

    def save(self, path: Path) -> None:
        """Every trial as a line of CSV."""
        out, keys = io.StringIO(), list(dict.fromkeys(key for space in self.spaces.values() for key in space))
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["row", *keys, self.tune.metric, "chosen", "runs"])
        for row, trials in self.trials.items():
            best = self.best(row)
            for trial in trials:
                settings = [trial.settings.get(key, "") for key in keys]
                value = "" if trial.value is None else repr(trial.value)
                runs = " ".join(cell.folder.name for cell in trial.cells)
                writer.writerow([row, *settings, value, "yes" if trial is best else "", runs])
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, out.getvalue())


def settled(cell: Cell) -> bool:
    """Whether a run is done, or diverged: the same again would diverge again."""
    return done(cell) or (read_json(cell.folder / "failed.json") or {}).get("type") == "NonFinite"


def _told(settings: dict) -> str:
    return " ".join(words(settings))


def search(tuning: Tuning, run: Callable, place: Path) -> int:
    """Run the trials that are not done, round after round. Returns the exit status: 0 where every row has its winner.

    run : what trains, as `runner.sweep.pool.run`. place : its folder.
    """
    for new in tuning.rounds():
        cells, states = distinct(cell for trial in new for cell in trial.cells), {}
        anew(cells)
        if old := stale(cells):
            warn(old)
            return 1
        if todo := [cell for cell in cells if not settled(cell)]:
            where = near(todo[0].folder.parent)
            print(f"tuning: {counted(len(cells))} in {where}, {len(todo)} of them to do", flush=True)
            states = run(todo, Sweep(**todo[0].config["sweep"]), place)
        if left := tuning.read(new):
            for cell in (cell for cell in left if states.get(cell.folder) == "failed"):
                trace, why = cell.folder / "failed.json", getattr(states, "why", {})
                print(f"failed: {cell}   ({trace if trace.exists() else why.get(cell.folder)})", file=sys.stderr)
            print(f"{len(left)} of {counted(len(cells))} are missing: nothing is chosen yet", file=sys.stderr)
            stopped = getattr(states, "signal", "") or "stopped" in states.values()
            return (getattr(states, "status", 130) if stopped else 1) or 1
    if lost := [row for row in tuning.trials if tuning.best(row) is None]:
        print(f"runner: every trial of row '{lost[0]}' diverged: give it another space", file=sys.stderr)
        return 1
    return 0
