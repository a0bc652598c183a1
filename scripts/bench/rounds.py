"""The method of every bench: rounds of turns, ratios within a round, and a null control.

In every round each arm is set up anew in a process of its own, so that no arm inherits another's caches, allocator,
global settings or imports, and that the luck of a process (where its memory lies can make it some percent faster or
slower for good) shows in the range over the rounds. All arms have the same number of threads. Each is measured once
without counting, to warm up. Then come the turns: in a turn every arm is measured once, briefly, in random order; its
time in the round is the median of its turns. A ratio is taken within a round, since what disturbs a machine changes
slowly, and summed up over the rounds by its median and range. The null control is the first arm a second time.
Arms that differ by less than two processes do share one in each round: see `Together`.

In all arms glibc's malloc keeps freed memory. By default it gives the top of the heap back to the system and takes it
anew, at every step or never, as the heap happens to lie: that made about one process in three, of ours or of others, a
third slower at LeNet, with 951 page faults a step against none.
"""

import multiprocessing
import os
import random
import statistics
import traceback
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from unittest.mock import patch

KEEP = {"MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_MMAP_THRESHOLD_": str(2**31 - 1)}  # bytes: never give back
CONTROL = "control"  # the arm that is the first one again

Make = tuple  # (callable, *arguments) -> a callable that returns the seconds of one measurement


class Arm:
    """`make(*arguments)` in a process of its own; a call measures once."""

    def __init__(self, make: Callable, *arguments, threads: int, environment: dict[str, str] | None = None):
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, make, arguments))
        said = KEEP | {"OMP_NUM_THREADS": str(threads)} | (environment or {})
        with patch.dict(os.environ, said):  # read when a process starts
            self.process.start()
        other.close()

    def __call__(self) -> float:
        self.pipe.send(True)
        kind, value = self.pipe.recv()
        if kind == "failed":
            raise RuntimeError(f"an arm failed:\n{value}")
        return value

    def close(self) -> None:
        self.pipe.close()  # the process's recv ends with EOFError
        self.process.join(30)
        if self.process.is_alive():
            self.process.terminate()


def _serve(pipe, make: Callable, arguments: tuple) -> None:
    measure = failure = None
    try:
        measure = make(*arguments)  # at once: the arms of a round set themselves up side by side
    except Exception:
        failure = traceback.format_exc()
    try:
        while pipe.recv():
            try:
                pipe.send(("failed", failure) if failure else ("seconds", measure()))
            except Exception:
                pipe.send(("failed", traceback.format_exc()))
    except EOFError:
        close(measure)


def close(measure: Callable | None) -> None:
    """End what an arm holds open, where it does."""
    if hasattr(measure, "close"):
        measure.close()


def take_turns(
    arms: dict[str, Make],
    rounds: int,
    turns: int,
    threads: int = 1,
    environments: dict[str, dict[str, str]] | None = None,
    beside: Callable = nullcontext,
) -> dict[str, list[float]]:
    """Seconds of every arm in every round. The first arm is measured a second time, as `CONTROL`.

    environments : of an arm's process, where it has one of its own. beside : a context in which the turns are taken.
    """
    first = next(iter(arms.values()))
    order, found = random.Random(0), []
    for _ in range(rounds):
        with ExitStack() as stack:
            running = {}
            for name, (make, *arguments) in {**arms, CONTROL: first}.items():
                own = {"environment": environments[name]} if name in (environments or {}) else {}
                running[name] = Arm(make, *arguments, threads=threads, **own)
                stack.callback(running[name].close)
            for measure in running.values():
                measure()
            with beside():
                found.append(in_turns(running, turns, order))
    return by_arm(found)


class Together:
    """Arms in one process; a call is a round. What separates two processes (see above) can be more than what separates
    two arms: of plain LeNet steps processes differed by up to 8 %, arms of one process mostly by 2."""

    def __init__(self, arms: dict[str, Make], turns: int):
        self.turns = turns
        self.running = {name: make(*arguments) for name, (make, *arguments) in arms.items()}

    def __call__(self) -> dict[str, float]:
        for measure in self.running.values():
            measure()
        return in_turns(self.running, self.turns, random.Random())

    def close(self) -> None:
        for measure in self.running.values():
            close(measure)


def take_turns_together(arms: dict[str, Make], rounds: int, turns: int, threads: int = 1) -> dict[str, list[float]]:
    """The same as `take_turns`, with one new process for all arms of a round."""
    every = {**arms, CONTROL: next(iter(arms.values()))}
    return by_arm([once(Together, every, turns, threads=threads) for _ in range(rounds)])


def in_turns(running: dict[str, Callable[[], float]], turns: int, order: random.Random) -> dict[str, float]:
    """One round: the median of its turns for every arm."""
    seconds = {name: [] for name in running}
    for _ in range(turns):
        for name in order.sample(list(running), len(running)):
            seconds[name].append(running[name]())
    return {name: statistics.median(values) for name, values in seconds.items()}


def by_arm(rounds: list[dict[str, float]]) -> dict[str, list[float]]:
    return {name: [found[name] for found in rounds] for name in rounds[0]}


def once(make: Callable, *arguments, threads: int = 1):
    """One result of an arm, in a process that ends afterwards."""
    arm = Arm(make, *arguments, threads=threads)
    try:
        return arm()
    finally:
        arm.close()


def medians(seconds: dict[str, list[float]], unit: str, count: int = 1) -> str:
    """The median time of every arm, divided by `count`, for orientation: other machines have other times."""
    shown = (f"{name} {1e3 * statistics.median(values) / count:,.4g} ms" for name, values in seconds.items())
    return f"median per {unit}: {', '.join(shown)}"


@dataclass
class Ratio:
    """A ratio over the rounds: median and range."""

    median: float
    range: tuple[float, float]

    @classmethod
    def of(cls, above: list[float], below: list[float]) -> "Ratio":
        ratios = sorted(a / b for a, b in zip(above, below, strict=True))
        return cls(statistics.median(ratios), (ratios[0], ratios[-1]))

    def __str__(self) -> str:
        return f"{self.median:.3f} | {self.range[0]:.3f} to {self.range[1]:.3f}"

    def __contains__(self, value: float) -> bool:
        return self.range[0] <= value <= self.range[1]


@dataclass
class Target:
    """What the ratio is to be."""

    bound: float
    at_least: bool

    def __str__(self) -> str:
        return f"at {'least' if self.at_least else 'most'} {self.bound:g}"

    def met(self, ratio: Ratio) -> bool:
        return ratio.median >= self.bound if self.at_least else ratio.median <= self.bound


@dataclass
class Row:
    """One comparison: the ratio, that of the control, and the target where there is one."""

    what: str
    ratio: Ratio
    control: Ratio
    target: Target | None = None

    def verdict(self) -> str:
        """Whether the target is met by the median, and whether a difference from 1 may be claimed at all."""
        words = []
        if self.target is not None:
            words.append("met" if self.target.met(self.ratio) else "missed")
        if self.ratio.median in self.control:
            words.append("not told from 1: inside the control's range")
        return "; ".join(words) or "recorded"

    def cells(self) -> str:
        return f"| {self.what} | {self.ratio} | {self.control} | {self.target or 'none'} | {self.verdict()} |"
