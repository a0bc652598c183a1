"""What a worker of the pool is given at once."""

import math
from dataclasses import dataclass

from runner.command.config import Sweep
from runner.sweep.cells import Cell


@dataclass
class Task:
    """What a worker is given at once: one run, or a pack of runs out of a group that could be packed together."""

    cells: list[Cell]
    group: int | None = None


def tasks(todo: list[Cell], kinds: list[list[Cell]], settings: Sweep, workers: int) -> list[Task]:
    """The largest first. A kind, as of `pack.groups`, makes at least as many packs as there are workers."""
    if settings.pack == "off":
        return [Task([cell]) for cell in todo]
    found = []
    for number, group in enumerate(kinds):
        size = math.ceil(len(group) / workers) if settings.pack == "auto" else settings.pack
        for start in range(0, len(group), size):
            part = group[start : start + size]
            found.append(Task(part, number if len(part) > 1 else None))
    return sorted(found, key=lambda task: len(task.cells), reverse=True)
