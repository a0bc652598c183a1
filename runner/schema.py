"""Types for constructor signatures: the signature of a method is the schema of its YAML node.

`def __init__(self, rho: Positive = 0.05)` makes `sharpness.rho=-1` one clear line before anything is built.
Literal, int, float, bool, str, list, dict and their unions are checked as written; see `runner.build.check`.
"""

from dataclasses import dataclass
from math import inf
from typing import Annotated


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


Positive = Annotated[float, Range(0, open_low=True)]
NonNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
OpenFraction = Annotated[float, Range(0, 1, open_high=True)]  # momentum, betas, decay, label smoothing: [0, 1)
Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
