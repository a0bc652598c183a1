"""Types for constructor signatures: the signature of a method is the schema of its YAML node.

`def __init__(self, rho: Positive = 0.05)` makes `sharpness.rho=-1` one clear line before anything is built.
Literal, int, float, bool, str, list, dict and their unions are checked as written; see `runner.command.build.check`.
Numbers are finite and such that a machine holds them (see `beyond`) unless a parameter's default is not.
"""

from dataclasses import dataclass
from math import inf, isfinite
from typing import Annotated, Any


@dataclass(frozen=True)
class Range:
    """The interval [low, high], without its ends where `open_low` / `open_high`."""

    low: float = -inf
    high: float = inf
    open_low: bool = False
    open_high: bool = False
    alike: bool = False  # whether runs that are trained side by side must agree in it

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        if self.high == inf:
            return f"{'above' if self.open_low else 'at least'} {self.low:g}"
        left, right = "(" if self.open_low else "[", ")" if self.open_high else "]"
        return f"in {left}{self.low:g}, {self.high:g}{right}"


class When:
    """The parameter acts only where the parameter `key` of the same constructor has one of `values`; with `but`, where
    it has any other.

    `alpha: Annotated[Positive, When("partition", "dirichlet", "quantity")]`: to type it where it does nothing is an
    error (`runner.command.build.idle`).
    """

    def __init__(self, key: str, *values: Any, but: bool = False):
        self.key, self.values, self.but = key, values, but

    def acts(self, value: Any) -> bool:
        return (value in self.values) != self.but

    def __str__(self) -> str:
        shown = " or ".join("null" if value is None else str(value).lower() for value in self.values)
        return f"is {'not ' if self.but else ''}{shown}"


WIDEST = 3.4028234e38  # of a number in single precision


def beyond(value: float) -> str | None:
    """What a number must be that a machine cannot hold, or None: integers have 64 bits, others are single precision."""
    if isinstance(value, int):
        return None if abs(value) < 2**63 else "below 2^63"
    if not isfinite(value):
        return "finite"
    return None if abs(value) <= WIDEST else "at most 3.4e38, as single precision is"


Positive = Annotated[float, Range(0, open_low=True)]
NonNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
OpenFraction = Annotated[float, Range(0, 1, open_high=True)]  # momentum, betas, decay, label smoothing: [0, 1)
Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
