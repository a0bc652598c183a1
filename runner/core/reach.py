"""What begins late in a run, and not at all in a short one: said before the first step.

An option of which something waits for a step says so with a method `begins`, which every base class has:

    def begins(self, steps: int, steps_per_epoch: int) -> Iterable[Begin]

for a run of so many steps, of which an epoch has so many.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from runner.core.mistake import ConfigError


class Begin(NamedTuple):
    """`what` comes after so many steps; in a run that has no more of them, `otherwise` is so.

    what : as a user knows it, such as "epoch=160". after : the first step, counted from 0, in which it has a part.
    needed : whether a run without it makes no sense and is refused. own : whether it counts the steps that a client has
    taken, not how far the rounds have come.
    """

    what: str
    after: int
    otherwise: str
    needed: bool = False
    own: bool = False


class Clock(NamedTuple):
    """What an option's steps are, and how many there are.

    noun : "steps", or what they are in a federation. taken : how many a client takes, in its rounds. None: all.
    """

    steps: int
    steps_per_epoch: int
    noun: str = "steps"
    taken: int | None = None

    def of(self, begin: Begin) -> int:
        return self.taken if begin.own and self.taken is not None else self.steps


def unreached(where: str, part: Any, clocks: list[Clock]) -> Iterator[str]:
    """One line for everything in this option that never begins by some of these clocks, of which a plain run has one
    and a federation one for each client. Raises ConfigError for what is needed and begins by none of them."""
    if not hasattr(part, "begins"):  # a third party's
        return
    for same in zip(*(list(part.begins(clock.steps, clock.steps_per_epoch)) for clock in clocks), strict=True):
        late = [(clock.of(begin), begin, clock) for begin, clock in zip(same, clocks, strict=True)]
        late = [entry for entry in late if entry[1].after >= entry[0]]
        if late:
            count, begin, clock = max(late, key=lambda entry: entry[0])
            there = f"{count:,}" if len(late) == len(clocks) else f"{count:,} for {len(late)} of {len(clocks)}"
            line = f"{where}: {begin.what} comes after {begin.after:,} {clock.noun}, and there are {there}"
            line = f"{line}: {begin.otherwise}"
            if begin.needed and len(late) == len(clocks):
                raise ConfigError(line)
            yield line
