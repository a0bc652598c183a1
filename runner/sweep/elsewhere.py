"""Runs that another process is at: a sweep, an experiment or a single run in another terminal."""

from pathlib import Path

from runner.record.folder import InUse
from runner.sweep.cells import Cell, counted, done

EVERY = 1.0  # seconds between looks


def in_use(error: BaseException | None) -> bool:
    """Whether an error, or what it was made of, says that another process holds the run's folder."""
    while error is not None:
        if isinstance(error, InUse):
            return True
        error = error.__cause__
    return False


def held(folder: Path) -> bool:
    """Whether some process holds the run's folder now."""
    from filelock import FileLock, Timeout

    path = folder / ".lock"
    if not path.exists():
        return False
    try:
        with FileLock(path).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False  # the run itself says what is wrong with its folder


class Elsewhere:
    """The cells that others are at. They are awaited: a run is done whoever did it, one that was given up is ours."""

    def __init__(self):
        self.cells: dict[Path, Cell] = {}
        self.looked = 0.0

    def __bool__(self) -> bool:
        return bool(self.cells)

    def add(self, cell: Cell) -> None:
        self.cells[cell.folder] = cell

    def look(self, now: float) -> tuple[list[Cell], list[Cell]]:
        """(those that are done by now, those that nobody is at any longer)."""
        if now - self.looked < EVERY:
            return [], []
        self.looked = now
        ready = [cell for folder, cell in self.cells.items() if done(cell)]
        given_up = [cell for cell in self.cells.values() if not done(cell) and not held(cell.folder)]
        for cell in (*ready, *given_up):
            del self.cells[cell.folder]
        return ready, given_up

    def __str__(self) -> str:
        folder = next(iter(self.cells))
        try:
            who = (folder / ".lock.owner").read_text().strip()
        except OSError:
            who = "another process"
        more = ", ..." if len(self.cells) > 1 else ""
        return f"running elsewhere: {counted(len(self.cells))} ({who}{more})"
