"""What a search may choose from: lists of values and ranges, as an experiment's `tune` and its rows give them."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from runner.core.mistake import ConfigError
from runner.core.schema import Count, Natural

KINDS = ("log", "linear", "whole")


@dataclass
class Tune:
    """The node `tune`; `runner.sweep.tuning` explains its keys."""

    metric: str
    trials: Count
    seeds: list[Natural]
    space: dict = field(default_factory=dict)
    select: Literal["last", "best"] = "last"
    sampler: Literal["grid", "random", "tpe"] = "grid"
    extend: Natural = 0


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included: in their logarithm, evenly, or whole ones."""

    kind: str
    low: float
    high: float

    def points(self, count: int) -> list[float]:
        """So many, evenly spaced; three significant digits of each, the ends as they are."""
        if count == 1:
            raise ConfigError("a range of a grid needs two points or more")
        low, high = (math.log(end) if self.kind == "log" else end for end in (self.low, self.high))
        inner = [low + (high - low) * i / (count - 1) for i in range(1, count - 1)]
        inner = [math.exp(at) if self.kind == "log" else at for at in inner]
        if self.kind == "whole":
            return sorted({self.low, *map(round, inner), self.high})
        return [self.low, *(rounded(at) for at in inner), self.high]


def rounded(value: float, digits: int = 3) -> float:
    return float(f"{value:.{digits}g}")


def parsed(spec: Any, where: str) -> list | Range:
    """A list of values, or a range. Raises ConfigError."""
    right = f"{where}={spec}: must be a list of values, or {{log: [low, high]}}, linear or whole in its place"
    if isinstance(spec, list) and spec and len({str(value) for value in spec}) == len(spec):
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in spec)
        return sorted(spec) if numbers else spec
    if not isinstance(spec, dict) or len(spec) != 1 or (kind := next(iter(spec))) not in KINDS:
        raise ConfigError(right)
    ends = spec[kind]
    if not isinstance(ends, list) or len(ends) != 2 or not all(isinstance(end, int | float) for end in ends):
        raise ConfigError(right)
    if not ends[0] < ends[1] or (kind == "log" and ends[0] <= 0):
        raise ConfigError(f"{where}={spec}: low must be below high" + (", and above 0" if kind == "log" else ""))
    return Range(kind, *ends)


def checked(tune: Tune, seeds: list[int], rows: dict[str, dict | None]) -> dict[str, dict[str, list | Range]]:
    """Row -> its space, of those that are tuned. rows : each with its own keys, or None. Raises ConfigError."""
    if not tune.metric.startswith("val_"):
        raise ConfigError(f"tune.metric={tune.metric}: settings are chosen by validation, by a measure val_...")
    if twice := sorted(set(tune.seeds) & set(seeds)):
        raise ConfigError(f"tune.seeds={tune.seeds}: {twice[0]} is a seed of the table; trials need others")
    if not tune.seeds or len(set(tune.seeds)) < len(tune.seeds):
        raise ConfigError(f"tune.seeds={tune.seeds}: must be one seed or more, each once")
    if tune.extend and tune.sampler != "grid":
        raise ConfigError(f"tune.extend={tune.extend}: only a grid is widened, and tune.sampler={tune.sampler}")
    found = {}
    for row, own in rows.items():
        if own is None:
            continue
        specs = {key: spec for key, spec in (tune.space | own).items() if spec is not None}
        space = {key: parsed(spec, f"rows.{row}, space.{key}") for key, spec in specs.items()}
        if not space:
            raise ConfigError(f"rows.{row}: it is to be tuned, and has no space; `tuned: <why not>` leaves it out")
        found[row] = gridded(space, tune.trials, row) if tune.sampler == "grid" else space
    if not found:
        raise ConfigError("tune: every row says `tuned`, so that there is none to tune")
    return found


def gridded(space: dict[str, list | Range], trials: int, row: str) -> dict[str, list]:
    """Every range as a list, so that the grid has this many points. Raises ConfigError where it cannot."""
    ranges = [key for key, spec in space.items() if isinstance(spec, Range)]
    given = math.prod(len(spec) for spec in space.values() if isinstance(spec, list))
    each = round((trials / given) ** (1 / len(ranges))) if ranges else 1
    found = {key: spec if isinstance(spec, list) else spec.points(max(each, 2)) for key, spec in space.items()}
    count = math.prod(map(len, found.values()))
    if count != trials:
        raise ConfigError(
            f"rows.{row}: its grid has {count} points ({' times '.join(str(len(v)) for v in found.values())}), and "
            f"tune.trials={trials}, as many for every row"
        )
    return found


def wider(values: list, side: int) -> float | None:
    """The next value beyond the first (side 0) or the last (side 1) at the list's pace; None where it has none."""
    if len(values) < 2 or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        return None
    a, b, c = (values[::-1] if side == 0 else values)[-3:] if len(values) > 2 else (None, *values[:: 2 * side - 1])
    if values[0] > 0 and values[-1] >= 3 * values[0]:  # 0.01, 0.03, 0.1: 0.3
        return rounded(b * c / a if a is not None else c * c / b)
    found = c + (c - b)
    return rounded(found) if isinstance(found, float) else found


def words(settings: dict) -> list[str]:
    """As overrides of the command line."""
    return [f"{key}={typed(value)}" for key, value in settings.items()]


def typed(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.10g}" if isinstance(value, float) else str(value).replace(" ", "")


def listed(spec: list | Range) -> str:
    if isinstance(spec, Range):
        return f"{spec.low:g} to {spec.high:g} ({spec.kind})"
    return ", ".join(map(typed, spec))
