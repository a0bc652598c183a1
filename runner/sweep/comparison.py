"""A paper's table: its numbers beside ours, and how far apart they are."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runner.record.files import sessions
from runner.record.identity import APART, APART_TRAIN
from runner.sweep import table
from runner.sweep.cells import done
from runner.sweep.paper import Printed
from runner.sweep.report import Block, Panel, Report
from runner.sweep.rows import Row, against, compare, comparison, count, exact, ours, shown, with_interval
from runner.sweep.runs import OTHER, measure
from runner.sweep.statistics import estimate, welch

if TYPE_CHECKING:
    from runner.sweep.experiment import Plan


WIDE = "too wide"


def apart(key: str) -> bool:
    """Whether a key is no part of a run's identity."""
    return key.partition(".")[0] in APART or (key.startswith("train.") and key[len("train.") :] in APART_TRAIN)


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

    def __init__(self, plan: "Plan"):
        self.plan, self.experiment = plan, plan.experiment
        made, self.entries = plan.experiment, {}
        for (row, column), cells in plan.cells.items():
            metric = made.columns[column].metric
            entry = Entry(metric, {"row": row, "measure": column}, printed=made.rows[row].paper.get(column))
            for seed, cell in cells.items():
                value, missing, _ = measure(cell.folder, made.select, metric)
                missing = missing or plan.stale.get(cell.folder) and OTHER
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
            compare(rows)

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
            own = with_interval(entry.estimate, entry.percent)
            lines.append([*self.where(entry), paper, own, count(entry), *entry.judged()])
        found = [Block(2, lines)]
        if self.experiment.baseline and len(self.experiment.rows) > 1:
            lines = [["row", "measure", f"minus {self.experiment.baseline}", "pairs", "p", "p (Holm)"]]
            rows = [entry for entry in self.entries.values() if entry.base is not entry]
            found.append(Block(2, lines + [[*self.where(entry), *comparison(entry)] for entry in rows]))
        return found

    def wide(self) -> list[Block]:
        """A line for every row, a column for every measure. The uncorrected p are in the CSV file."""
        made, marked = self.experiment, ", selected on test" if self.experiment.select == "test" else ""
        by_row = {row: [self.entries[row, column] for column in made.columns] for row in made.rows}
        first = next(iter(by_row.values()))
        lines = [["row", *(self.where(entry)[1] + marked for entry in first), "n"]]
        for row, entries in by_row.items():
            counts = ", ".join(dict.fromkeys(map(count, entries)))
            lines.append([row, *(with_interval(entry.estimate, entry.percent) for entry in entries), counts])
        found = [Block(1, lines)]
        if made.baseline and len(by_row) > 1:
            heads = ((f"{self.where(entry)[1]} minus {made.baseline}", "p (Holm)") for entry in first)
            lines = [["row", *(head for pair in heads for head in pair), "pairs"]]
            for row in (row for row in by_row if row != made.baseline):
                compared = [comparison(entry) for entry in by_row[row]]
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
            record |= ours(entry)
            record |= {"difference": exact(entry.gap), "welch_ci95_half_width": exact(entry.margin)}
            record |= {"paper_inside": given(entry.inside), "welch_holds_0": given(entry.agrees)}
            if self.experiment.baseline:
                record |= {"baseline": self.experiment.baseline, **against(entry)}
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
