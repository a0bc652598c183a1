"""The table of results of many runs: mean and 95 % confidence interval over seeds, by what varies between the runs.

    python -m runner.sweep.table outputs/NAME [--select last|val|test] [--metric test_accuracy] [--by loss,optim]
                                 [--baseline loss=ce] [--format png|pdf|svg]

What is missing is said, never left out.
"""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from runner.core.mistake import suggest
from runner.core.output import unbreakable
from runner.record.curves import FORMATS
from runner.sweep.alike import default_metric, notices, refuse_unlike
from runner.sweep.missing import command, own_folders, remaining
from runner.sweep.progress import counting
from runner.sweep.report import Block, Panel, Report, draw, save
from runner.sweep.rows import Row, against, choose_base, compare, comparison, count, order, ours, shown, with_interval
from runner.sweep.runs import ABSENT, RULES, group, measure, read, runs_under, token, uneven, varying

INTERVAL = "mean ± half width of its 95 % confidence interval (Student t over the n seeds)"
PAIRED = (
    "paired by seed, mean ± half width of the 95 % interval (Student t); p of the paired t test, then with Holm's "
    "correction over"
)


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


if __name__ == "__main__":
    with unbreakable():
        main()
