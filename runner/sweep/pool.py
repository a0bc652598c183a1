"""The pool: worker processes that import once, keep data sets in memory, and take a sweep's runs until none is left.

A worker is forked from a server that has imported torch and the engine (`warm`), or spawned where forking is not safe.
It trains one run after another, or a pack of runs side by side (`runner.sweep.pack`), each in its own folder as the
command alone would; what a run prints goes to the worker's log. It holds one end of a pipe: where the other end closes,
the command is gone, and the worker stops its run after the present step, with the state saved, and ends.

Signals. Ctrl-C and the end of a terminal (SIGHUP) reach all its processes, and mean what the command makes of them:
workers never see them. The command tells those that are in a run with SIGTERM, which a run takes as a wish to stop
(`runner.engine.run`).
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from runner.command.config import Sweep
from runner.core.output import near
from runner.record.files import history, write_json
from runner.sweep.cells import Cell, distinct, done
from runner.sweep.display import Display, speak
from runner.sweep.elsewhere import Elsewhere
from runner.sweep.outcome import Outcome
from runner.sweep.places import cores, leases, threads, visible
from runner.sweep.preflight import Preflight
from runner.sweep.process import STOPPING, Worker, warm
from runner.sweep.tasks import Task, tasks

GRACE = 10.0  # seconds that a worker has for ending when it has nothing more to do


def run(cells: list[Cell], settings: Sweep, place: Path) -> Outcome:
    """Train every cell that is not done yet, and say so while it goes on.

    place : the folder for the workers' logs and the sweep's own, sweep.log; made where missing.

    Of every kind of run one is assembled first: what does not fit fails before anything has been trained. A run that
    another process is at is awaited.

    After SIGINT, SIGTERM or SIGHUP the runs in progress end after their present step with their state saved, nothing
    new starts, and this returns; a second SIGINT ends them at once. Raises OSError where `place` cannot be made.
    """
    cells = distinct(cells)
    outcome = Outcome()
    outcome.update((cell.folder, "done" if done(cell) else "missing") for cell in cells)
    if any(status == "missing" for status in outcome.values()):
        Path(place).mkdir(parents=True, exist_ok=True)
        _Pool(cells, settings, Path(place), outcome).run()
    return outcome


class _Pool:
    def __init__(self, cells: list[Cell], settings: Sweep, place: Path, outcome: Outcome):
        self.settings, self.place, self.outcome = settings, place, outcome
        todo = [cell for cell in cells if outcome[cell.folder] != "done"]
        cpus = cores()
        # As many as all cells need: a sweep that goes on has the same threads per run as before, hence the same bits
        places = leases((cell.config["device"] for cell in todo), settings, visible(), cpus)[: len(cells)]
        self.threads = threads(cpus, len(places))
        from runner.sweep.pack import groups

        self.kinds = groups(todo)
        self.queue = deque(tasks(todo, self.kinds, settings, len(places)))
        self.elsewhere = Elsewhere()
        self.free = deque(enumerate(places))
        self.environment: dict[str, str] = {}
        if any(cell.config["train"]["deterministic"] for cell in todo):
            # CUDA's libraries read it once in a process, perhaps for an earlier run of this sweep
            self.environment["CUBLAS_WORKSPACE_CONFIG"] = os.environ.get("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        self.workers: list[Worker] = []
        self.deaths: dict[Path, int] = {}
        self.said: set = set()
        self.signal, self.at_once, self.halted = "", False, False
        self.display = Display(cells, outcome, place / "sweep.log")

    def run(self) -> None:
        with self._signals(), self.display:
            try:
                warm()
                if sum(map(len, self.kinds)) > 1:
                    Preflight(self.kinds, self).run()
                for worker in list(self.workers):
                    if worker.process.is_alive():
                        self._next(worker)
                self._loop()
            finally:
                self._end()
        if self.signal and {"missing", "stopped"} & set(self.outcome.values()):
            self.outcome.signal = self.signal
            count = sum(status == "done" for status in self.outcome.values())
            how = "stopped at once" if self.at_once else f"stopped by {self.signal}"
            what = f"{count} of {len(self.outcome)} runs are done; the same command goes on from here"
            speak(f"{how}: {what}", sys.stderr)

    def begin(self) -> Worker:
        """One more worker, in a free place."""
        number, lease = self.free.popleft()
        self.workers.append(Worker(number, lease, self.place, self.environment, self.threads))
        return self.workers[-1]

    def cannot(self, kind: list[Cell], why: str) -> None:
        """Runs of a kind that does not fit together have failed, before the first of them."""
        for cell in kind:
            self.outcome[cell.folder], self.outcome.why[cell.folder] = "failed", why
        lost = {cell.folder for cell in kind}
        left = [Task([cell for cell in task.cells if cell.folder not in lost], task.group) for task in self.queue]
        self.queue = deque(task for task in left if task.cells)
        self.display.cannot(kind, why)
        self._halt_if_asked()

    def _loop(self) -> None:
        while True:
            self._look_elsewhere()
            while self.queue and self.free and not self.halted:
                self._next(self.begin())
            if not self.workers:
                if not self.elsewhere or self.halted:
                    return
                self.say_once("elsewhere", f"{self.elsewhere}; waiting for it (Ctrl-C: no longer)")
                time.sleep(0.2)
                continue
            sources = {worker.pipe: worker for worker in self.workers}
            sources |= {worker.process.sentinel: worker for worker in self.workers}
            ready = multiprocessing.connection.wait(list(sources), timeout=0.2)
            for worker in {sources[source].number: sources[source] for source in ready}.values():
                self._hear(worker)
            for worker in self.workers:
                if worker.dismissed is not None and time.monotonic() - worker.dismissed > GRACE:
                    worker.tell(signal.SIGKILL)
            if self.signal and any(worker.open for worker in self.workers):
                self.say_once("stop", "stopping after the present step, with the state saved (Ctrl-C: at once)")
            elif self.signal:
                self.say_once("stop", "stopping: no run is in progress")
            self.display.show(self.workers)

    def _next(self, worker: Worker) -> None:
        """Give a worker its next task, or its leave. What another process has done meanwhile is done."""
        while self.queue and not self.halted:
            task = self.queue.popleft()
            for cell in filter(done, task.cells):
                self._close(cell, "done")
            if left := [cell for cell in task.cells if not done(cell)]:
                worker.give(Task(left, task.group if len(left) > 1 else None), self.settings.pack)
                return
        worker.dismiss()

    def _look_elsewhere(self) -> None:
        if self.elsewhere:
            ready, given_up = self.elsewhere.look(time.monotonic())
            for cell in ready:
                self._close(cell, "done")
            self.queue.extend(Task([cell]) for cell in given_up)

    def _hear(self, worker: Worker) -> None:
        """Everything that a worker has said; then its death, where it is dead."""
        dead = bool(multiprocessing.connection.wait([worker.process.sentinel], timeout=0))
        try:
            while worker.pipe.poll():
                self._message(worker, *worker.pipe.recv())
        except (EOFError, OSError):
            dead = True
        if dead:
            self._dead(worker)

    def _message(self, worker: Worker, kind: str, *content) -> None:
        if kind == "say":
            self.say_once(content[0], content[0])
        elif kind == "apart":
            worker.apart = content[0]
        elif kind == "idle":
            self._idle(worker)
        elif kind == "ended":
            number, status, line = content
            if status == "stopped" and number in worker.open and done(worker.open[number]):
                status = "done"  # the signal came too late
            if status != "stopped" or self.signal:  # else somebody stopped this worker alone: it dies of it
                self._ended(worker, number, status, line)

    def say_once(self, what, line: str) -> None:
        if what not in self.said:
            self.said.add(what)
            self.display.print(line)

    def _ended(self, worker: Worker, number: int, status: str, line: str = "") -> None:
        cell = worker.open.pop(number, None)
        if cell is not None and status == "elsewhere":
            self.elsewhere.add(cell)
        elif cell is not None:
            self._close(cell, status, line, worker.task.group is not None)

    def _close(self, cell: Cell, status: str, line: str = "", packed: bool = False) -> None:
        """A run has ended, here or elsewhere."""
        self.outcome[cell.folder] = status
        if status == "failed":
            self.outcome.why[cell.folder] = line
        self.display.ended(cell, status, line, packed)
        if status == "failed":
            self._halt_if_asked()

    def _halt_if_asked(self) -> None:
        if self.settings.on_error == "stop":
            self.halted = True
            self.say_once("halt", "sweep.on_error=stop: no further run starts")

    def _idle(self, worker: Worker) -> None:
        """A task is over. The runs of a pack that could not be one are queued alone, with the rest of its group."""
        for number, cell in list(worker.open.items()):
            if done(cell):
                self._ended(worker, number, "done")
            elif not worker.apart:
                self._ended(worker, number, "failed", "its pack ended without it")
        if worker.apart:
            group = worker.task.group
            parted = [Task(list(worker.open.values()), group), *(task for task in self.queue if task.group == group)]
            singles = [cell for task in parted for cell in task.cells]
            self.queue = deque(task for task in self.queue if task.group != group)
            self.queue.extend(Task([cell]) for cell in singles)
            if group not in self.said:
                self.said.add(group)
                self.say_once(worker.apart, f"not packed, {len(singles)} runs go one by one: {worker.apart}")
        self._next(worker)

    def _dead(self, worker: Worker) -> None:
        """Its unfinished runs start once more, alone; what dies twice has failed."""
        self.workers.remove(worker)
        self.free.append((worker.number, worker.lease))
        worker.process.join(GRACE)
        if worker.process.is_alive() or worker.process.exitcode == 255:  # 255: it is the server that died
            worker.tell(signal.SIGKILL)
            worker.process.join()
        worker.pipe.close()
        how = _cause(worker.process.exitcode)
        again = []
        for number, cell in list(worker.open.items()):
            if done(cell):
                self._ended(worker, number, "done")
            elif self.signal:
                self._ended(worker, number, "stopped")
            elif self.deaths.setdefault(cell.folder, 0):
                _note_death(cell, how, worker.log)
                self._ended(worker, number, "failed", f"its process {how}, twice")
            else:
                self.deaths[cell.folder] += 1
                self.outcome[cell.folder] = "stopped"
                again.append(cell)
        if again:
            self.queue.extendleft(Task([cell]) for cell in reversed(again))
            whose = (
                f"the process of {self.display.named(again[0])}" if len(again) == 1 else f"a pack of {len(again)} runs"
            )
            self.display.print(f"{whose} {how}: once more, alone  ({near(worker.log)})", error=True)

    def _end(self) -> None:
        """After an error of our own: nobody is left behind."""
        for worker in self.workers:
            worker.tell(signal.SIGTERM)
            worker.dismiss()
        for worker in self.workers:
            worker.process.join(GRACE)
            if worker.process.is_alive():
                worker.tell(signal.SIGKILL)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number, frame):
            name = signal.Signals(number).name
            if not self.signal:
                self.signal, self.halted = name, True
                for worker in self.workers:
                    if worker.open:
                        worker.tell(signal.SIGTERM)
            elif number == signal.SIGINT:
                self.at_once = True
                for worker in self.workers:
                    worker.tell(signal.SIGKILL)

        before = {number: signal.signal(number, ask) for number in STOPPING}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _cause(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"was killed by {name}" + (", perhaps out of memory" if name == "SIGKILL" else "")
    return f"ended with exit status {code}"


def _note_death(cell: Cell, how: str, log: Path) -> None:
    """failed.json of a run whose process could not write it."""
    with contextlib.suppress(OSError, ValueError):
        cell.folder.mkdir(parents=True, exist_ok=True)
        records = history(cell.folder)
        content = {
            "status": "failed",
            "type": "Died",
            "message": f"the run's process {how}, twice; the end of its log may say more: {log}",
            "step": records[-1].get("step") if records else None,
            "traceback": "",
        }
        write_json(cell.folder / "failed.json", content)
