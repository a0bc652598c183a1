"""Packing: runs that differ in numbers alone, trained side by side in one process."""

from collections.abc import Callable

from runner.sweep.cells import Cell


class Unpackable(Exception):
    """Why runs cannot, or should not, be trained side by side: one line. They are then run one by one."""


def groups(cells: list[Cell]) -> list[list[Cell]]:
    """The cells, put together where one pack may hold them: same options, same shapes, same number of steps."""
    return [[cell] for cell in cells]


def together(
    cells: list[Cell],
    pack: str | int,
    say: Callable[[str], None],
    ended: Callable[[Cell, str, str], None],
) -> None:
    """Train the cells side by side in this process, each with its own folder, as `runner.run.run` would one of them.

    pack: "auto", or the number of replicas. say: prints a line. ended(cell, status, message) is called once for
    each cell that is "done" or "failed".

    Raises
    ------
    Unpackable
        Before anything is written.
    Stopped
        After SIGINT or SIGTERM, with every cell's state saved.
    """
    raise Unpackable("not yet")
