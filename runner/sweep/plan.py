"""`--plan`: what a command would run, what of it is there, the commands of the rest, and what they would take.

Nothing is written, and nothing trained but the few steps that are timed.
"""

import shlex
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runner.core.output import near
from runner.sweep.cells import Cell, counted, done, home
from runner.sweep.ends import stale
from runner.sweep.estimate import lines

wanted = False  # by the present command
folders: list[Path] = []  # the user's, for the commands


@contextmanager
def asked(own: list[Path]) -> Iterator[None]:
    """The present command is to be planned. own : the user's config folders."""
    global wanted, folders
    wanted, folders = True, own
    try:
        yield
    finally:
        wanted, folders = False, []


def state(cell: Cell, changed: dict[Path, str]) -> str:
    """What is there of a run: done, changed (of other code or data, or damaged), begun, failed, or missing."""
    if done(cell):
        return "changed" if cell.folder in changed else "done"
    names = {"last.pt": "begun", "failed.json": "failed"}
    return next((word for name, word in names.items() if (cell.folder / name).exists()), "missing")


def show(cells: list[Cell]) -> None:
    """Print the runs in their order: those that are done with their folders, the others as typed alone."""
    changed = stale(cells)
    states = [state(cell, changed) for cell in cells]
    counts = ", ".join(f"{number} {word}" for word, number in Counter(states).items())
    print(f"plan of {counted(len(cells))} in {near(home(cells))}: {counts}; nothing is run\n")
    own = [word for folder in folders for word in ("--config-dir", str(folder))]
    for cell, word in zip(cells, states, strict=True):
        command = shlex.join(["python", "-m", "runner", *own, *cell.overrides])
        command += " --again=changed" if word == "changed" else ""
        print(f"{word:<8} {near(cell.folder)}  {cell}" if word == "done" else f"{word:<8} {command}")
    if left := [cell for cell, word in zip(cells, states, strict=True) if word != "done"]:
        print()
        for line in lines(left, cells):
            print(line, flush=True)
    if changed:
        print(f"\n{next(iter(changed.values()))}")
