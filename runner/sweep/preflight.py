"""What only the data and the device can tell, found before a sweep's first run: of every kind of run one is assembled.

Runs that differ in their seed and in numbers alone are one kind (`runner.sweep.pack.structure`): a model that does not
fit the data fails for all of them, and once is enough to say so. Nothing is trained and nothing written.
"""

import signal
from collections import deque
from multiprocessing.connection import wait
from typing import TYPE_CHECKING

from runner.core.mistake import ConfigError
from runner.sweep.cells import Cell, counted

if TYPE_CHECKING:
    from runner.sweep.pool import _Pool
    from runner.sweep.process import Worker

CHECK = "check"  # what a worker is given in place of the size of a pack


def look(cell: Cell) -> tuple[str, list[str]]:
    """(why the run cannot be, what it has to say before its first step), in a worker."""
    from runner.engine.run import Job

    try:
        return "", list(Job(cell.config, cell.overrides).trainer.notices)
    except ConfigError as error:
        return str(error), []
    except Exception:  # whatever else it is, the run itself says it better
        return "", []


class Preflight:
    """The pool's first task: the kinds of a sweep, shared among its workers.

    kinds : the cells that are to be run, those of a kind together.
    """

    def __init__(self, kinds: list[list[Cell]], host: "_Pool"):
        self.kinds, self.host = kinds, host
        self.notices: dict[str, list[Cell]] = {}  # line -> a cell of each kind that says it
        self.impossible: list[tuple[list[Cell], str]] = []

    def run(self) -> None:
        """Raises nothing: what cannot run is marked failed, and no more of its kind is tried."""
        host, left = self.host, deque(enumerate(self.kinds))
        busy: dict[int, Worker] = {}
        while (left or busy) and not host.signal:
            while left and host.free:
                worker = host.begin()
                busy[worker.number] = worker
                self._give(worker, left)
            if not busy:  # they all died of it
                break
            sources = {worker.pipe: worker for worker in busy.values()}
            sources |= {worker.process.sentinel: worker for worker in busy.values()}
            for worker in {sources[one].number: sources[one] for one in wait(list(sources), timeout=0.2)}.values():
                heard = self._hear(worker)
                if heard is False or (heard and not self._give(worker, left)):
                    del busy[worker.number]
            host.display.counter("checked", len(self.kinds) - len(left) - len(busy), len(self.kinds), "kinds of runs")
        for worker in busy.values():  # after a signal: there is nothing to save
            worker.tell(signal.SIGKILL)
        self._conclude()

    def _give(self, worker: "Worker", left: deque) -> bool:
        if not left:
            return False
        number, kind = left.popleft()
        worker.ask((number, kind[0]), CHECK)
        return True

    def _hear(self, worker: "Worker") -> bool | None:
        """True: it has answered. False: it is dead, which is left to the pool, and its kind to the run itself."""
        try:
            while worker.pipe.poll():
                said, *content = worker.pipe.recv()
                if said == "say":
                    self.host.display.print(content[0])
                elif said == "checked":
                    number, why, notices = content
                    if why:
                        self.impossible.append((self.kinds[number], why))
                    for line in dict.fromkeys(notices):
                        self.notices.setdefault(line, []).append(self.kinds[number][0])
                    return True
        except (EOFError, OSError):
            return False
        return None if worker.process.is_alive() else False

    def _conclude(self) -> None:
        """Say once what there is to say; the rest of the sweep is the pool's."""
        host = self.host
        for line, whose in self.notices.items():
            of = (
                ""
                if len(whose) == len(self.kinds)
                else f"  ({host.display.named(whose[0])}{', ...' * (len(whose) > 1)})"
            )
            host.say_once(note := f"note    {line}", f"{note}{of}")
        for kind, why in self.impossible:
            host.cannot(kind, why)


def said(cells: list[Cell], named) -> str:
    return named(cells[0]) if len(cells) == 1 else f"{counted(len(cells))} such as {named(cells[0])}"
