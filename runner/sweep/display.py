"""What a sweep shows while it runs: a line for each run that ended, and who is at what."""

import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from runner.core.output import near
from runner.record.files import finished
from runner.sweep.cells import Cell
from runner.sweep.outcome import Outcome
from runner.sweep.preflight import said

if TYPE_CHECKING:
    from runner.sweep.process import Worker


class Display:
    """On a terminal a bar over the runs, elsewhere a line for every run that ended; failures are lines in both."""

    def __init__(self, cells: list[Cell], outcome: Outcome, log: Path):
        self.outcome, self.log, self.bar = outcome, log, None
        self.total = len(cells)
        self.before = self.count = sum(status == "done" for status in outcome.values())
        self.packed = 0
        shared = set.intersection(*(set(cell.overrides) for cell in cells))
        self.shared = shared if len(cells) > 1 else set()

    def named(self, cell: Cell) -> str:
        """What tells a cell from the others: of a paper's table its row and its seed."""
        if cell.row:
            return f"{cell.row} seed={cell.config['seed']}"
        return " ".join(word for word in cell.overrides if word not in self.shared) or "the defaults"

    def __enter__(self) -> "Display":
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=self.total, initial=self.before, unit="run", leave=False, dynamic_ncols=True)
        return self

    def __exit__(self, *_) -> None:
        if self.bar is not None:
            self.bar.close()

    def print(self, line: str, error: bool = False) -> None:
        """For the user, and for the record: what was packed, and how much faster that was, is said in such a line."""
        with contextlib.suppress(OSError), open(self.log, "a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")
        file = sys.stderr if error else sys.stdout
        if self.bar is None:
            speak(line, file)
        else:
            with contextlib.suppress(OSError, ValueError):
                self.bar.write(line, file=file)

    def counter(self, what: str, count: int, total: int, of: str) -> None:
        """How far the sweep's beginning is, on a terminal."""
        if self.bar is not None and total > 1:
            self.bar.set_postfix_str(f"{what} {count} of {total} {of}", refresh=True)

    def cannot(self, kind: list[Cell], why: str) -> None:
        self.count += len(kind)
        head = f"[{self.count:>{len(str(self.total))}}/{self.total}] failed"
        self.print(f"{head}  {said(kind, self.named)}  {_cut(why)}", error=True)
        if self.bar is not None:
            self.bar.update(len(kind))

    def ended(self, cell: Cell, status: str, line: str, packed: bool) -> None:
        if status == "stopped":
            return
        self.count += 1
        self.packed += packed
        head = f"[{self.count:>{len(str(self.total))}}/{self.total}] {status:<6}  {self.named(cell)}"
        if status == "failed":
            trace = cell.folder / "failed.json"
            where = f"  ({near(trace)})" if trace.exists() else ""
            self.print(f"{head}  {_cut(line)}{where}", error=True)
        elif self.bar is None or not sys.stdout.isatty():
            self.print(f"{head}  {_measure(cell)}  {near(cell.folder)}")
        if self.bar is not None:
            self.bar.update()

    def show(self, workers: "list[Worker]") -> None:
        if self.bar is None:
            return
        counts = {name: sum(status == name for status in self.outcome.values()) for name in ("done", "failed")}
        running = sum(len(worker.open) for worker in workers)
        packed = self.packed + sum(len(worker.open) for worker in workers if worker.task.group is not None)
        text = f"{counts['done']} done, {running} running, {counts['failed']} failed, {packed} packed"
        with contextlib.suppress(OSError, ValueError):  # the terminal is gone
            self.bar.set_postfix_str(text, refresh=True)


def speak(line: str, file) -> None:
    """A line to a reader that may have gone."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=file, flush=True)


def _cut(line: str, width: int = 200) -> str:
    line = " ".join(line.split())
    return line if len(line) <= width else f"{line[: width - 3]}..."


def _measure(cell: Cell) -> str:
    """The first measure on the test set, else any."""
    last = (finished(cell.folder) or {}).get("last") or {}
    for start in ("test_", "val_", "train_"):
        for key, value in last.items():
            if key.startswith(start) and value is not None:
                return f"{key} {100 * value:.2f} %" if "accuracy" in key else f"{key} {value:.4g}"
    return ""
