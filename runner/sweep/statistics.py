"""What a table says of a mean, of a difference, and of many differences at once.

`scipy.special` rather than `scipy.stats`: the same functions of Student's t, and a sweep's end does not wait a second
for the import.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """The mean of n values taken as independent draws of one normal distribution.

    error : the standard error, s / sqrt(n) with s over n - 1; None below two values.
    """

    mean: float
    error: float | None
    n: int

    @property
    def half(self) -> float | None:
        """Half of the 95 % interval of the mean, t(0.975, n - 1) * error; None below two values."""
        return None if self.error is None else quantile(self.n - 1) * self.error

    @property
    def p(self) -> float | None:
        """Of the two-sided t test that the mean is 0. None below two values, and where all are equal: no error to
        measure the mean by."""
        from scipy.special import stdtr

        return 2 * float(stdtr(self.n - 1, -abs(self.mean) / self.error)) if self.error else None

    def holds(self, value: float) -> bool | None:
        """Whether `value` lies in the interval; None where there is none."""
        return None if self.half is None else abs(value - self.mean) <= self.half


def quantile(freedom: float) -> float:
    """t(0.975) of Student's distribution: the half width of a 95 % interval in standard errors."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))


def estimate(values: Iterable[float]) -> Estimate | None:
    """None where there is no value."""
    values = list(values)
    n = len(values)
    if n < 2:
        return Estimate(values[0], None, 1) if values else None
    mean = math.fsum(values) / n
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    equal = deviation <= 1e-12 * max(map(abs, values))  # but for the rounding of the values themselves
    return Estimate(mean, 0.0 if equal else deviation / math.sqrt(n), n)


def paired(ours: Mapping, base: Mapping) -> Estimate | None:
    """The mean of ours - base over the seeds that both have (seed -> value each); its `p` is the paired t test's."""
    return estimate(ours[seed] - base[seed] for seed in ours if seed in base)


def welch(ours: Estimate, error: float, n: int) -> float | None:
    """Half of the 95 % interval of the difference to another mean, of n values and with the standard error `error`.

    Welch, Biometrika 1947: the standard errors add in squares, and the degrees of freedom are
    (a^2 + b^2)^2 / (a^4 / (n_a - 1) + b^4 / (n_b - 1)). None where either side has fewer than two values.
    """
    if ours.error is None or n < 2:
        return None
    a, b = ours.error**2, error**2
    if a + b == 0:
        return 0.0
    return quantile((a + b) ** 2 / (a**2 / (ours.n - 1) + b**2 / (n - 1))) * math.sqrt(a + b)


def holm(p: list[float | None]) -> list[float | None]:
    """p-values corrected for how many there are (Holm, Scandinavian Journal of Statistics 1979).

    The i-th smallest of m is multiplied by m - i + 1, and none becomes smaller than the one before it, nor more than 1.
    None is no test: it stays, and does not count.
    """
    ranked = sorted((value, i) for i, value in enumerate(p) if value is not None)
    corrected, least = list(p), 0.0
    for rank, (value, i) in enumerate(ranked):
        corrected[i] = least = max(least, min(1.0, (len(ranked) - rank) * value))
    return corrected
