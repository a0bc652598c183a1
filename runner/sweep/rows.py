"""A row of a table: its values over seeds, what it is compared with, and how these are shown."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from runner.core.mistake import suggest
from runner.sweep.cells import key_of
from runner.sweep.runs import ABSENT, token
from runner.sweep.statistics import Estimate, estimate, holm, paired


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


def order(value: Any) -> tuple:
    """Absent first, then numbers by size, then words."""
    if value is ABSENT or value is None:
        return 0, 0, ""
    if isinstance(value, int | float):
        return 1, value, ""
    return 2, 0, shown(value)


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
