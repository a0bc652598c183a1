"""The table of results of many runs: mean and 95 % confidence interval over seeds, by what varies between the runs.

    python -m runner.sweep.table outputs/NAME [--select last|val|test] [--metric test_accuracy] [--by loss,optim]

What is missing is said, never left out.
"""

import argparse
import csv
import io
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.build import suggest
from runner.config import APART, APART_TRAIN
from runner.record import finished, history, read_config, read_json, write_atomic

RULES = {
    "last": "at the last epoch",
    "val": "at the epoch that is best on validation",
    "test": "at the epoch that is best on test (selected on test: optimistic)",
}
ABSENT = object()  # a key of a node that this run does not have


@dataclass
class Run:
    """One run's folder, read."""

    folder: Path
    config: dict[str, Any]  # dotted key -> value, less what does not change the result
    typed: set[str]  # the keys that the user gave
    seed: Any
    value: float | None
    missing: str | None  # why there is no value
    metrics: set[str]


@dataclass
class Row:
    """The runs that differ in their seed alone (or in what the table does not tell apart)."""

    keys: dict[str, Any]
    values: list[float] = field(default_factory=list)
    seeds: list = field(default_factory=list)  # those of `values`
    missing: list[str] = field(default_factory=list)  # one line for each run without a value

    @property
    def mean(self) -> float | None:
        return sum(self.values) / len(self.values) if self.values else None

    @property
    def half_width(self) -> float | None:
        """Half of the 95 % interval of the mean, t(0.975, n - 1) * s / sqrt(n); None below two values."""
        n = len(self.values)
        if n < 2:
            return None
        from scipy.special import stdtrit  # Student's t quantile, without all of scipy.stats

        deviation = math.sqrt(sum((value - self.mean) ** 2 for value in self.values) / (n - 1))
        return float(stdtrit(n - 1, 0.975)) * deviation / math.sqrt(n)


@dataclass
class Table:
    """Rows and how they were made; `text`, `markdown`, `latex` and `csv` print the same numbers."""

    metric: str
    select: str
    by: list[str]
    rows: list[Row]
    notes: list[str]

    @property
    def percent(self) -> bool:
        return self.metric.endswith(("accuracy", "exact", "ece"))

    @property
    def header(self) -> str:
        unit = " in %" if self.percent else ""
        return (
            f"{self.metric}{unit}, {RULES[self.select]}: mean ± half width of its 95 % confidence interval "
            "(Student t over the n seeds)"
        )

    def column(self) -> str:
        return self.metric + (" (%)" if self.percent else "") + (", selected on test" if self.select == "test" else "")

    def shown(self, row: Row) -> str:
        if not row.values:
            return "missing"
        mean = f"{100 * row.mean:.2f}" if self.percent else f"{row.mean:.4g}"
        if row.half_width is None:
            return f"{mean} (n=1)"
        return f"{mean} ± " + (f"{100 * row.half_width:.2f}" if self.percent else f"{row.half_width:.2g}")

    def cells(self) -> list[list[str]]:
        """The head and one list of strings for each row."""
        lines = [[*self.by, self.column(), "n", "seeds"]]
        for row in self.rows:
            n, runs = len(row.values), len(row.values) + len(row.missing)
            count = str(n) if n == runs else f"{n}/{runs}"
            keys = [shown(row.keys[key]) for key in self.by]
            lines.append([*keys, self.shown(row), count, ",".join(map(shown, row.seeds)) or "-"])
        return lines

    def remarks(self) -> list[str]:
        """What is missing, row by row, then the notes."""
        lines = []
        for row in self.rows:
            if row.missing:
                where = " ".join(f"{key}={shown(row.keys[key])}" for key in self.by)
                lines.append(f"missing{' ' if where else ''}{where}: {'; '.join(row.missing)}")
        return lines + self.notes

    def text(self) -> str:
        """Aligned columns for a terminal."""
        cells = self.cells()
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([self.header, "", *lines, *([""] if self.remarks() else []), *self.remarks()]) + "\n"

    def markdown(self) -> str:
        cells = [[cell.replace("|", "\\|") for cell in line] for line in self.cells()]
        cells.insert(1, ["---"] * len(cells[0]))
        lines = ["| " + " | ".join(line) + " |" for line in cells]
        remarks = [f"- {line}" for line in self.remarks()]
        return "\n".join([self.header, "", *lines, *([""] if remarks else []), *remarks]) + "\n"

    def latex(self) -> str:
        """A tabular for the booktabs package; header and remarks are comments above it."""
        head, *lines = [" & ".join(map(escape, line)) + r" \\" for line in self.cells()]
        comments = [f"% {line}" for line in (self.header, *self.remarks())]
        spec = "l" * len(self.by) + "rrl"
        body = [
            rf"\begin{{tabular}}{{{spec}}}",
            r"\toprule",
            head,
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
        ]
        return "\n".join([*comments, *body]) + "\n"

    def csv(self) -> str:
        """One line for each row, in full precision; every line says what it measures."""
        scale, unit = (100, "%") if self.percent else (1, "")
        columns = ["metric", "unit", "select", "mean", "ci95_half_width", "n", "runs", "seeds", "missing"]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([*self.by, *columns])
        for row in self.rows:
            numbers = ["" if x is None else repr(scale * x) for x in (row.mean, row.half_width)]
            n = len(row.values)
            keys = [shown(row.keys[key]) for key in self.by]
            rest = [n, n + len(row.missing), " ".join(map(shown, row.seeds)), "; ".join(row.missing)]
            writer.writerow([*keys, self.metric, unit, self.select, *numbers, *rest])
        return out.getvalue()


def save(made: Table, folder: Path) -> None:
    """Write table.md, table.tex and table.csv, each atomically."""
    write_atomic(folder / "table.md", made.markdown())
    write_atomic(folder / "table.tex", made.latex())
    write_atomic(folder / "table.csv", made.csv())


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


def escape(text: str) -> str:
    """For LaTeX text mode."""
    special = {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        **{c: "\\" + c for c in "&%$#_{}"},
    }
    return re.sub(r"[\\~^±<>|&%$#_{}]", lambda match: special[match.group()], text)


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
                step = "" if error["step"] is None else f" at step {error['step']}"
                lines = error["message"].splitlines() or [""]
                return None, f"failed{step}: {error['type']}: {lines[0]:.120}", set()
            records = history(folder)
            return None, f"unfinished after epoch {records[-1].get('epoch')}" if records else "unfinished", set()
    except ValueError as damage:
        return None, str(damage), set()
    measures = result.get({"last": "last", "val": "best_val", "test": "best_test"}[select])
    if measures is None:
        return None, f"no measures {RULES[select]}", set()
    value = measures.get(metric)
    missing = None if value is not None else f"{metric} is not finite" if metric in measures else f"no {metric}"
    return value, missing, set(measures)


def read(folder: Path, select: str, metric: str) -> Run:
    """Raises ValueError where the folder holds no run."""
    config = read_config(folder)
    value, missing, metrics = measure(folder, select, metric)
    return Run(folder, settings(config), typed(folder), config.get("seed"), value, missing, metrics)


def typed(folder: Path) -> set[str]:
    """The keys that the user gave on the command line."""
    import yaml

    path = folder / ".hydra" / "overrides.yaml"
    overrides = (yaml.safe_load(path.read_text()) if path.exists() else None) or []
    return {re.split("[=@]", str(override).lstrip("+~"))[0] for override in overrides}


def varying(runs: list[Run]) -> list[str]:
    """The keys by which the runs differ, apart from their seed.

    A key that the user typed counts. Any other only if it tells runs apart that no earlier key does: `optim=sgd,sam`
    also changes the sharpness and its rho, and one column is enough.
    """
    keys = dict.fromkeys(key for run in runs for key in run.config)
    different = [key for key in keys if len({token(run.config.get(key, ABSENT)) for run in runs}) > 1]
    named = [key for key in different if any(key in run.typed for run in runs)]
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
    folders: list[Path], select: str = "last", metric: str = "test_accuracy", by: list[str] | None = None
) -> Table:
    """Read runs and put them side by side.

    Parameters
    ----------
    folders : run folders, finished or not. One that holds no run yet is noted as not started.
    select : the epoch of the value, `last`, `val` (best on validation) or `test` (best on test; marked in the table).
    metric : a key of the measures in result.json. Accuracies and ECE are printed in per cent.
    by : config keys or groups to group by. None: all that vary between the runs, apart from the seed.

    A row's runs are its folders and one for every seed that some other row has: of a sweep cut short, 3/5 is shown and
    what the other two lack.

    Raises
    ------
    ValueError
        No run at all; a metric that no finished run has; a key of `by` that no run has.
    """
    runs, absent = [], []
    for folder in folders:
        if (folder / ".hydra" / "config.yaml").exists():
            runs.append(read(folder, select, metric))
        else:
            absent.append(folder.name)
    if not runs:
        raise ValueError(f"none of the {len(folders)} folders holds a run")
    metrics = set().union(*(run.metrics for run in runs))
    if metrics and metric not in metrics:
        listed = ", ".join(sorted(metrics - {"epoch"}))
        raise ValueError(f"no metric '{metric}' in these runs.{suggest(metric, metrics)} There are: {listed}")
    finer = varying(runs)
    known = dict.fromkeys(key for run in runs for key in run.config)
    for key in by or []:
        if key not in known:
            raise ValueError(f"no key '{key}' in the config of these runs.{suggest(key, known)}")
    by = finer if by is None else by
    seeds = {token(run.seed): run.seed for run in runs}
    notes = [f"not started: {', '.join(absent)}"] if absent else []
    rows = []
    for members in group(runs, by).values():
        row = Row({key: members[0].config.get(key, ABSENT) for key in by})
        for cell in group(members, finer).values():
            for run in sorted(cell, key=lambda run: order(run.seed)):
                if run.value is None:
                    row.missing.append(f"seed {shown(run.seed)} ({run.missing})")
                else:
                    row.values.append(run.value)
                    row.seeds.append(run.seed)
            begun = [token(run.seed) for run in cell]
            row.missing += [f"seed {shown(seeds[key])} (not started)" for key in sorted(seeds) if key not in begun]
        rows.append(row)
    pooled = [key for key in finer if len(group(runs, [*by, key])) > len(rows)]
    if pooled:
        notes.append(f"rows pool runs that differ in {', '.join(pooled)}: n counts runs, and the interval is over them")
    elif any(len(set(map(token, row.seeds))) < len(row.seeds) for row in rows):
        notes.append("some rows hold a seed twice: their interval is over runs that are not independent")
    rows.sort(key=lambda row: [order(row.keys[key]) for key in by])
    return Table(metric, select, by, rows, notes)


def runs_under(folder: Path) -> list[Path]:
    """The run folders directly under `folder`, begun or not."""
    marks = (Path(".hydra", "config.yaml"), Path(".lock"))
    return sorted(path for path in folder.glob("[!.]*") if any((path / mark).exists() for mark in marks))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m runner.sweep.table",
        description="Print the table of a folder of runs, and write table.md, table.tex and table.csv beside them.",
    )
    parser.add_argument("folder", type=Path, help="outputs/NAME")
    parser.add_argument("--select", choices=tuple(RULES), default="last", help="which epoch counts; default last")
    parser.add_argument("--metric", default="test_accuracy", help="default test_accuracy")
    parser.add_argument("--by", help="keys to group by, such as loss,optim; default: all that vary but the seed")
    parser.error = lambda message: parser.exit(2, f"{message}\n")
    given = parser.parse_args(arguments)
    try:
        folders = runs_under(given.folder)
        if not folders:
            raise ValueError(f"no runs in {given.folder}")
        made = table(folders, given.select, given.metric, given.by.split(",") if given.by else None)
        print(made.text(), end="")
        save(made, given.folder)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
