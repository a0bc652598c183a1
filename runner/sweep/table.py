"""The table of results of many runs: mean and 95 % confidence interval over seeds, by what varies between the runs.

    python -m runner.sweep.table outputs/NAME [--select last|val|test] [--metric test_accuracy] [--by loss,optim]
                                 [--baseline loss=ce] [--format png|pdf|svg]

What is missing is said, never left out.
"""

import argparse
import json
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.build import suggest
from runner.config import APART, APART_TRAIN
from runner.curves import FORMATS
from runner.output import unbreakable
from runner.provenance import mixed, remarks
from runner.record import finished, history, read_config, read_json, read_yaml, sessions
from runner.sweep.alike import default_metric, notices, refuse_unlike
from runner.sweep.cells import counted
from runner.sweep.progress import counting
from runner.sweep.report import Block, Panel, Report, draw, save
from runner.sweep.statistics import Estimate, estimate, holm, paired

RULES = {
    "last": "at the last epoch",
    "val": "at the epoch that is best on validation",
    "test": "at the epoch that is best on test (selected on test: optimistic)",
}
SHOWN = 20  # commands for missing runs
ABSENT = object()  # a key of a node that this run does not have
INTERVAL = "mean ± half width of its 95 % confidence interval (Student t over the n seeds)"
PAIRED = (
    "paired by seed, mean ± half width of the 95 % interval (Student t); p of the paired t test, then with Holm's "
    "correction over"
)


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


@dataclass
class Row:
    """The runs that differ in their seed alone (or in what the table does not tell apart)."""

    metric: str
    keys: dict[str, Any]
    values: list[float] = field(default_factory=list)
    seeds: list = field(default_factory=list)  # those of `values`
    missing: list[str] = field(default_factory=list)  # one line for each run without a value
    base: "Row | None" = None  # what it is compared with
    difference: Estimate | None = None  # to `base`, paired by seed
    holm: float | None = None  # the corrected p of `difference`

    @property
    def percent(self) -> bool:
        return self.metric.endswith(("accuracy", "exact", "ece", "map"))

    @property
    def scale(self) -> int:
        """From a value to what is shown."""
        return 100 if self.percent else 1

    @property
    def estimate(self) -> Estimate | None:
        return estimate(self.values)

    @property
    def mean(self) -> float | None:
        return self.estimate and self.estimate.mean

    @property
    def half_width(self) -> float | None:
        """Half of the 95 % interval of the mean, t(0.975, n - 1) * s / sqrt(n); None below two values."""
        return self.estimate and self.estimate.half

    @property
    def scaled(self) -> list[float]:
        return [self.scale * value for value in self.values]

    @property
    def by_seed(self) -> dict:
        return dict(zip(map(token, self.seeds), self.values, strict=True))


@dataclass
class Table(Report):
    """Rows and how they were made; `text`, `markdown`, `latex` and `csv` print the same numbers."""

    metric: str
    select: str
    by: list[str]
    rows: list[Row]
    notes: list[str]
    baseline: str | None = None
    rest: list[str] = field(default_factory=list)  # the commands of the runs that are missing

    @property
    def percent(self) -> bool:
        return self.rows[0].percent

    @property
    def header(self) -> str:
        line = f"{self.metric}{' in %' if self.percent else ''}, {RULES[self.select]}: {INTERVAL}"
        compared = sum(row.difference is not None and row.difference.p is not None for row in self.rows)
        many = "1 comparison" if compared == 1 else f"{compared} comparisons"
        return line + (f"\nminus {self.baseline}: {PAIRED} {many}" if self.baseline else "")

    def column(self) -> str:
        return self.metric + (" (%)" if self.percent else "") + (", selected on test" if self.select == "test" else "")

    def name(self, row: Row) -> str:
        return " ".join(f"{key}={shown(row.keys[key])}" for key in self.by)

    def cells(self) -> list[list[str]]:
        """The head and one list of strings for each row."""
        lines = [[*self.by, self.column(), "n", "seeds"]]
        for row in self.rows:
            keys = [shown(row.keys[key]) for key in self.by]
            seeds = ",".join(map(shown, row.seeds)) or "-"
            lines.append([*keys, with_interval(row.estimate, row.percent), count(row), seeds])
        return lines

    def blocks(self) -> list[Block]:
        found = [Block(len(self.by), self.cells())]
        if self.baseline:
            lines = [[*self.by, f"minus {self.baseline}", "pairs", "p", "p (Holm)"]]
            for row in self.rows:
                if row.base is not row:
                    lines.append([*(shown(row.keys[key]) for key in self.by), *comparison(row)])
            found.append(Block(len(self.by), lines))
        return found

    def remarks(self) -> list[str]:
        """What is missing, row by row, then the notes."""
        missing = [(self.name(row), "; ".join(row.missing)) for row in self.rows if row.missing]
        return [f"missing{' ' if where else ''}{where}: {what}" for where, what in missing] + self.notes

    def records(self) -> list[dict]:
        found = []
        for row in self.rows:
            record = {key: shown(row.keys[key]) for key in self.by}
            record |= {"metric": self.metric, "unit": "%" if self.percent else "", "select": self.select}
            record |= ours(row)
            if self.baseline:
                record |= {"baseline": self.name(row.base) if row.base else "", **against(row)}
            found.append(record | {"missing": "; ".join(row.missing)})
        return found

    def panels(self) -> list[Panel]:
        rows = [(self.name(row) or self.metric, row.scaled, None) for row in self.rows]
        return [Panel(self.column(), rows, percent=self.percent)]


def with_interval(found: Estimate | None, percent: bool) -> str:
    """For values in units of 1."""
    if found is None:
        return "missing"
    mean = f"{100 * found.mean:.2f}" if percent else f"{found.mean:.4g}"
    if found.half is None:
        return f"{mean} (n=1)"
    return f"{mean} ± " + (f"{100 * found.half:.2f}" if percent else f"{found.half:.2g}")


def count(row: Row) -> str:
    """`5`, or `3/5` where two are missing."""
    n, runs = len(row.values), len(row.values) + len(row.missing)
    return str(n) if n == runs else f"{n}/{runs}"


def comparison(row: Row) -> list[str]:
    """Difference to the baseline, pairs, p, p after Holm's correction: what cannot be said says why."""
    found = row.difference
    if found is None:
        return ["no seed in both" if row.base else "no one row to compare with", "0", "-", "-"]
    signed = ("" if found.mean < 0 else "+") + with_interval(found, row.percent)
    if found.p is None:
        return [signed, str(found.n), *(["n < 2"] if found.n < 2 else ["all equal"]) * 2]
    return [signed, str(found.n), f"{found.p:.2g}", f"{row.holm:.2g}"]


def compare(rows: list[Row]) -> None:
    """Fill in the paired differences of rows whose `base` is set, with Holm's correction over them."""
    rows = [row for row in rows if row.base is not None and row.base is not row]
    for row in rows:
        row.difference = paired(row.by_seed, row.base.by_seed)
    for row, p in zip(rows, holm([row.difference and row.difference.p for row in rows]), strict=True):
        row.holm = p


def ours(row: Row) -> dict:
    """Of a CSV record."""
    found = row.estimate
    return {
        "mean": exact(found and found.mean, row.scale),
        "ci95_half_width": exact(found and found.half, row.scale),
        "n": len(row.values),
        "runs": len(row.values) + len(row.missing),
        "seeds": " ".join(map(shown, row.seeds)),
    }


def against(row: Row) -> dict:
    """Of a CSV record."""
    found = row.difference
    return {
        "pairs": found.n if found else "",
        "paired_difference": exact(found and found.mean, row.scale),
        "paired_ci95_half_width": exact(found and found.half, row.scale),
        "p": exact(found and found.p),
        "p_holm": exact(row.holm),
    }


def exact(value: float | None, scale: float = 1) -> str:
    return "" if value is None else repr(scale * value)


def shown(value: Any) -> str:
    if value is ABSENT:
        return "-"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, list):
        return "[" + ",".join(map(shown, value)) + "]"
    return str(value)


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
    kept = {key: value for key, value in config.items() if key not in APART and key not in ("seed", "train")}
    if kept.get("checkpoint") is None:  # runs of before there was one are the same
        kept.pop("checkpoint", None)
    kept["train"] = {key: value for key, value in config.get("train", {}).items() if key not in APART_TRAIN}
    choices = {group: option for group, option in config.get("choices", {}).items() if group not in APART}
    return {**choices, **flatten(kept)}


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


OTHER = "of other code or data than there is now"


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


def key_of(override: str) -> str:
    return re.split("[=@]", override.lstrip("+~"))[0]


def command(overrides: list[str], seed: Any, own: list[str] | tuple[str, ...] = ()) -> str:
    """What one would type to get the run with these overrides and this seed. own : words for the user's options."""
    words = [word for word in overrides if key_of(word) != "seed"]
    return shlex.join(["python", "-m", "runner", *own, *words, f"seed={shown(seed)}"])


def own_folders(folder: Path) -> list[str]:
    """The `--config-dir DIR` of the command that last worked on the run; none where that is not known."""
    words = (sessions(folder) or [{}])[-1].get("argv")
    words = [str(word) for word in words] if isinstance(words, list) else []
    found = []
    for i, word in enumerate(words):
        if word in ("--config-dir", "-cd"):
            found += ["--config-dir", *words[i + 1 : i + 2]]
        elif word.startswith(("--config-dir=", "-cd=")):
            found += ["--config-dir", word.partition("=")[2]]
    return found


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


def order(value: Any) -> tuple:
    """Absent first, then numbers by size, then words."""
    if value is ABSENT or value is None:
        return 0, 0, ""
    if isinstance(value, int | float):
        return 1, value, ""
    return 2, 0, shown(value)


def table(
    folders: list[Path],
    select: str = "last",
    metric: str | None = None,
    by: list[str] | None = None,
    baseline: str | None = None,
    within: Path | None = None,
    out: Iterable[Path] = (),
) -> Table:
    """Read runs and put them side by side.

    Parameters
    ----------
    folders : run folders, finished or not. One that holds no run yet is noted as not started.
    select : the epoch of the value, `last`, `val` (best on validation) or `test` (best on test; marked in the table).
    metric : a key of the measures in result.json. None: test_accuracy, test_mae of runs without one, or what there is
        on the test set. Accuracies, ECE and mAP are printed in per cent.
    by : config keys or groups to group by. None: all that vary between the runs, apart from the seed. No row may hold
        a seed twice then.
    baseline : the row that the others are compared with, by seed: `loss=ce`, or more keys with blanks between them.
        Where several rows fit, each row is compared with the one that it otherwise agrees with.
    within : the folder of which these are all runs, where they were not asked for by one command.
    out : folders of which the values do not count: a sweep's runs of other code than there is now. Nor do those that
        were computed by other code, or on other data, than the newest of the rest.

    A row's runs are its folders and one for every seed that some other row has: of a sweep cut short, 3/5 is shown and
    what the other two lack.

    Raises
    ------
    ValueError
        No run at all; a metric that no finished run has; a key of `by` that no run has, or keys that leave a seed twice
        in a row; a baseline that is no row, or
        rows that cannot be paired by seed.
    """
    if metric is None:
        found = (measure(folder, select, "")[2] for folder in folders)
        metric = default_metric(set().union(*counting(found, len(folders), "looked at")))
    runs, absent, damaged = [], [], []
    for folder in counting(folders, len(folders), "read"):
        if (folder / ".hydra" / "config.yaml").exists():
            try:
                runs.append(read(folder, select, metric))
            except ValueError as damage:
                damaged.append(f"left out: {damage}")
        elif (folder / "result.json").exists():
            damaged.append(f"left out: {folder} has a result and no .hydra/config.yaml")
        else:
            absent.append(folder.name)
    if not runs:
        more = f": {damaged[0]}" if damaged else ""
        raise ValueError(f"none of the {len(folders)} folders holds a run{more}")
    differ = uneven(runs, out)
    check_metric(metric, set().union(*(run.metrics for run in runs)))
    if within is not None:
        refuse_unlike(within, runs, by or ())
    finer = varying(runs)
    known = dict.fromkeys(key for run in runs for key in run.config)
    for key in by or []:
        if key not in known:
            raise ValueError(f"no key '{key}' in the config of these runs.{suggest(key, known)}")
    by = finer if by is None else by
    seeds = {token(run.seed): run.seed for run in runs}
    notes = [*damaged, *([f"not started: {', '.join(absent)}"] if absent else []), *differ]
    rows, rest = [], []
    for members in group(runs, by).values():
        row = Row(metric, {key: members[0].config.get(key, ABSENT) for key in by})
        for cell in group(members, finer).values():
            for run in sorted(cell, key=lambda run: order(run.seed)):
                if run.value is None:
                    row.missing.append(f"seed {shown(run.seed)} ({run.missing})")
                else:
                    row.values.append(run.value)
                    row.seeds.append(run.seed)
            begun = {token(run.seed) for run in cell}
            never = [seeds[key] for key in sorted(seeds) if key not in begun]
            row.missing += [f"seed {shown(seed)} (not started)" for seed in never]
            again = [run.seed for run in cell if not (run.folder / "result.json").exists()]
            # a run that was not started from the command line has no overrides: nothing is known to type
            own = own_folders(cell[0].folder)
            rest += [command(cell[0].typed, seed, own) for seed in again + never if cell[0].typed]
            other = [run for run in cell if run.result and run.value is None and run.typed]
            rest += [f"{command(run.typed, run.seed, own)} --again=changed" for run in other]
        rows.append(row)
    pooled = [key for key in finer if len(group(runs, [*by, key])) > len(rows)]
    twice = any(len(set(map(token, row.seeds))) < len(row.seeds) for row in rows)
    if pooled and twice:
        raise ValueError(
            f"--by {','.join(by)}: a row would hold a seed several times, its runs differ in {', '.join(pooled)} too: "
            "their mean is over settings as well as seeds, and no interval is right for it. Name those keys as well"
        )
    if pooled:
        notes.append(f"rows pool runs that differ in {', '.join(pooled)}: n counts runs, and the interval is over them")
    elif twice:
        notes.append("some rows hold a seed twice: their interval is over runs that are not independent")
    notes += [f"note: {line}" for line in notices(run.folder for run in runs)]
    rows.sort(key=lambda row: [order(row.keys[key]) for key in by])
    if baseline:
        if twice:
            raise ValueError("--baseline pairs runs by seed, and some rows hold a seed twice")
        choose_base(rows, by, baseline)
        compare(rows)
    return Table(metric, select, by, rows, notes, baseline, rest)


def check_metric(metric: str, known: set[str]) -> None:
    """Raises ValueError where there are measures and this is none of them."""
    if known and metric not in known:
        listed = ", ".join(sorted(known - {"epoch"}))
        raise ValueError(f"no metric '{metric}' in these runs.{suggest(metric, known)} There are: {listed}")


def choose_base(rows: list[Row], by: list[str], wanted: str) -> None:
    """Set the row that each row is compared with. Raises ValueError where no row fits what is wanted."""
    fit = rows
    for word in wanted.split():
        key, _, value = word.partition("=")
        if key not in by:
            raise ValueError(f"--baseline {word}: the rows have no key '{key}'.{suggest(key, by)} {has(by)}")
        values = [shown(row.keys[key]) for row in fit]
        fit = [row for row, there in zip(fit, values, strict=True) if there == value]
        if not fit:
            raise ValueError(f"--baseline {word}: no such row.{suggest(value, values)} {has(dict.fromkeys(values))}")
    others = [key for key in by if key not in [key_of(word) for word in wanted.split()]]
    for row in rows:
        # a key that one of the two has not belongs to an option that the other has not chosen
        own = [base for base in fit if all(agree(row.keys[key], base.keys[key]) for key in others)]
        chosen = fit if len(fit) == 1 else own
        row.base = row if row in fit else chosen[0] if len(chosen) == 1 else None


def agree(a: Any, b: Any) -> bool:
    return a is ABSENT or b is ABSENT or token(a) == token(b)


def has(names: Iterable[str]) -> str:
    return f"There are: {', '.join(names)}"


def runs_under(folder: Path) -> list[Path]:
    """The run folders directly under `folder`, begun or not."""
    marks = (Path(".hydra", "config.yaml"), Path(".lock"))
    return sorted(path for path in folder.glob("[!.]*") if any((path / mark).exists() for mark in marks))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m runner.sweep.table",
        description="Print the table of a folder of runs; write table.md, .tex, .csv and a figure beside them.",
    )
    parser.add_argument("folder", type=Path, help="outputs/NAME")
    parser.add_argument("--select", choices=tuple(RULES), default="last", help="which epoch counts; default last")
    parser.add_argument("--metric", help="default test_accuracy, or test_mae for regression")
    parser.add_argument("--format", choices=FORMATS, default="png", help="of the figure; default png")
    parser.add_argument("--by", help="keys to group by, such as loss,optim; default: all that vary but the seed")
    parser.add_argument("--baseline", help="the row to compare the others with, paired by seed, such as loss=ce")
    parser.error = lambda message: parser.exit(2, f"{message}\n")
    given = parser.parse_args(arguments)
    try:
        folders = runs_under(given.folder)
        if not folders:
            raise ValueError(f"no runs in {given.folder}")
        by = given.by.split(",") if given.by else None
        made = table(folders, given.select, given.metric, by, given.baseline, given.folder)
        print(made.text(), end="", flush=True)
        save(made, given.folder)
        draw(made, given.folder / f"table.{given.format}")
        print(f"\nsaved as {given.folder / 'table'}.md, .tex, .csv, .{given.format}\n{remaining(made.rest)}", end="")
    except (ValueError, OSError) as error:
        parser.error(str(error))


def remaining(commands: list[str]) -> str:
    """The commands for what is missing, one a line, under a line that says so; empty where nothing is."""
    if not commands:
        return ""
    lines, more = commands[:SHOWN], len(commands) - SHOWN
    lines += [f"and {counted(more)} more: the sweep's own command goes on with all of them"] if more > 0 else []
    return "\n".join(["", f"what is missing, {counted(len(commands))}:", *lines, ""])


if __name__ == "__main__":
    with unbreakable():
        main()
