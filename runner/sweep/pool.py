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
import faulthandler
import gc
import logging
import math
import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from runner.command.config import Sweep
from runner.core.output import Quiet, near
from runner.record.files import finished, history, write_json
from runner.record.folder import Stopped
from runner.sweep.cells import Cell, distinct, done
from runner.sweep.elsewhere import Elsewhere, in_use
from runner.sweep.preflight import CHECK, Preflight, look, said

# What every run needs; torch's optimizers import its compiler
PRELOAD = ["torch", "torch._dynamo", "runner.engine.run", "runner.sweep.pool", "runner.sweep.pack"]
PRELOAD += ["matplotlib.figure", "matplotlib.backends.backend_agg"]
STOPPING = {signal.SIGINT, signal.SIGTERM} | ({signal.SIGHUP} if hasattr(signal, "SIGHUP") else set())
GRACE = 10.0  # seconds that a worker has for ending when it has nothing more to do


class Outcome(dict):
    """Folder -> "done", "failed", "stopped" or "missing" (never started).

    signal : the name of the signal that stopped the sweep, or "". why : folder -> one line about a run that failed.
    """

    def __init__(self):
        super().__init__()
        self.signal = ""
        self.why: dict[Path, str] = {}

    @property
    def status(self) -> int:
        """What a command that was stopped ends with: 128 and the signal's number."""
        return 128 + signal.Signals[self.signal]


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


# ---- how many workers, and where


def cores() -> int:
    """The cores that this process may use: its affinity, and the quota of its container where there is one."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(count, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max": no quota
        return count


def visible() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them. CUDA is not started."""
    import torch

    count = torch.cuda.device_count()
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(number) for number in range(count)] if listed is None else listed.split(",")
    return [name.strip() for name in names[:count]]


def leases(devices: Iterable[str], settings: Sweep, gpus: list[str], cpus: int) -> list[str | None]:
    """One entry per worker: the GPU that is its own, or None where it takes what its runs' `device` says.

    devices : what the runs ask for. Workers are dealt to the GPUs in turn, so that fewer workers still use all of them.
    """
    devices = set(devices)
    if devices & {"auto", "cuda"} and gpus:
        places: list[str | None] = list(gpus)
    elif named := {device for device in devices if device.startswith("cuda:")}:
        places = [None] * len(named)
    else:
        places = [None] * cpus
        return places if settings.jobs == "auto" else [None] * settings.jobs
    count = settings.jobs_per_gpu * len(places) if settings.jobs == "auto" else settings.jobs
    return [places[number % len(places)] for number in range(count)]


def threads(cpus: int, workers: int) -> int:
    """For each worker: its share of the cores, or less where OMP_NUM_THREADS says so."""
    said = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    share = max(1, cpus // workers)
    return min(share, int(said)) if said.isdecimal() and int(said) else share


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


# ---- starting processes


def _context():
    """Forked from a clean server on Linux; elsewhere system libraries do not survive a fork."""
    method = "forkserver" if sys.platform == "linux" else "spawn"
    return multiprocessing.get_context(method)


@contextlib.contextmanager
def _unsignalled() -> Iterator[None]:
    """A process started in here does not see Ctrl-C, nor SIGTERM until it is ready for it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def warm() -> None:
    """Start the server that workers are forked from. It imports while the caller goes on with something else."""
    if _context().get_start_method() == "forkserver":
        from multiprocessing import forkserver, resource_tracker

        resource_tracker.ensure_running()  # of its own it would lift the block of signals before the server starts
        forkserver.set_forkserver_preload(PRELOAD)
        with _unsignalled():
            forkserver.ensure_running()


def cool() -> None:
    """End the server, which else would finish its imports first, and whoever reads our output would wait for it."""
    from multiprocessing import forkserver

    server = forkserver._forkserver
    if pid := getattr(server, "_forkserver_pid", None):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
            server._stop()


# ---- the side of the command


class _Worker:
    """One process, as the command sees it."""

    def __init__(self, number: int, lease: str | None, place: Path, environment: dict[str, str], threads: int):
        self.number, self.lease = number, lease
        self.log = place / f"worker-{number + 1}.log"
        self.task = Task([])
        self.open: dict[int, Cell] = {}  # the cells of its task that have not ended
        self.apart = ""  # why its task cannot be a pack
        self.dismissed: float | None = None  # since when
        self.pipe, theirs = multiprocessing.Pipe()
        if lease is not None:
            environment = environment | {"CUDA_VISIBLE_DEVICES": lease}
        arguments = (theirs, self.log, environment, threads)
        self.process = _context().Process(target=serve, args=arguments, name=f"runner-worker-{number + 1}")
        with _unsignalled():
            self.process.start()
        theirs.close()

    def give(self, task: Task, pack: str | int) -> None:
        self.task, self.apart = task, ""
        self.open = dict(enumerate(task.cells))
        self._send((task.cells, None if task.group is None else pack))

    def ask(self, what, how: str) -> None:
        """For an answer that is no run."""
        self.task, self.open = Task([]), {}
        self._send((what, how))

    def dismiss(self) -> None:
        self.task, self.open, self.dismissed = Task([]), {}, time.monotonic()
        self._send(None)

    def _send(self, message) -> None:
        with contextlib.suppress(OSError):  # it is dead: its sentinel says so
            self.pipe.send(message)

    def tell(self, number: int) -> None:
        with contextlib.suppress(OSError):
            os.kill(self.process.pid, number)


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
        self.workers: list[_Worker] = []
        self.deaths: dict[Path, int] = {}
        self.said: set = set()
        self.signal, self.at_once, self.halted = "", False, False
        self.display = _Display(cells, outcome, place / "sweep.log")

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
            _say(f"{how}: {what}", sys.stderr)

    def begin(self) -> _Worker:
        """One more worker, in a free place."""
        number, lease = self.free.popleft()
        self.workers.append(_Worker(number, lease, self.place, self.environment, self.threads))
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

    def _next(self, worker: _Worker) -> None:
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

    def _hear(self, worker: _Worker) -> None:
        """Everything that a worker has said; then its death, where it is dead."""
        dead = bool(multiprocessing.connection.wait([worker.process.sentinel], timeout=0))
        try:
            while worker.pipe.poll():
                self._message(worker, *worker.pipe.recv())
        except (EOFError, OSError):
            dead = True
        if dead:
            self._dead(worker)

    def _message(self, worker: _Worker, kind: str, *content) -> None:
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

    def _ended(self, worker: _Worker, number: int, status: str, line: str = "") -> None:
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

    def _idle(self, worker: _Worker) -> None:
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

    def _dead(self, worker: _Worker) -> None:
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


class _Display:
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

    def __enter__(self) -> "_Display":
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
            _say(line, file)
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

    def show(self, workers: list[_Worker]) -> None:
        if self.bar is None:
            return
        counts = {name: sum(status == name for status in self.outcome.values()) for name in ("done", "failed")}
        running = sum(len(worker.open) for worker in workers)
        packed = self.packed + sum(len(worker.open) for worker in workers if worker.task.group is not None)
        text = f"{counts['done']} done, {running} running, {counts['failed']} failed, {packed} packed"
        with contextlib.suppress(OSError, ValueError):  # the terminal is gone
            self.bar.set_postfix_str(text, refresh=True)


def _say(line: str, file) -> None:
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


# ---- the side of a worker


class _Here:
    """What this process, a worker, is at."""

    def __init__(self, pipe, log: Path, threads: int):
        self.pipe, self.log, self.threads = pipe, log, threads
        self.lock = threading.Lock()
        self.stop = ""  # the signal that asked
        self.interruptible = False  # in a run, where the run itself does not listen
        self.folder, self.environment = os.getcwd(), dict(os.environ)

    def ask(self, number, frame) -> None:
        self.stop = signal.Signals(number).name
        if self.interruptible:
            raise KeyboardInterrupt

    def send(self, *message) -> None:
        interruptible, self.interruptible = self.interruptible, False  # half a message would be the last
        with self.lock, contextlib.suppress(OSError):  # the command is gone
            self.pipe.send(message)
        self.interruptible = interruptible
        if interruptible and self.stop:
            raise KeyboardInterrupt

    def anew(self) -> None:
        """What a run may have changed and `runner.engine.run.prepare` does not set: a run finds it as in a new one."""
        import torch

        os.chdir(self.folder)
        if dict(os.environ) != self.environment:
            os.environ.clear()
            os.environ.update(self.environment)
        signal.signal(signal.SIGTERM, self.ask)
        torch.set_num_threads(self.threads)

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        self.interruptible = True
        try:
            if self.stop:
                raise KeyboardInterrupt
            yield
        finally:
            self.interruptible = False


class _Forward(logging.Handler):
    """The engine's own warnings are shown by the command."""

    def __init__(self, here: _Here):
        super().__init__(logging.WARNING)
        self.here = here

    def emit(self, record: logging.LogRecord) -> None:
        self.here.send("say", self.format(record))


def serve(pipe, log: Path, environment: dict[str, str], threads: int) -> None:
    """A worker's life: tasks from the pipe until there is None, or the pipe or the process is to end."""
    os.environ.update(environment)
    _divert(log)
    faulthandler.enable(sys.stderr)
    here = _Here(pipe, log, threads)
    inbox: queue.SimpleQueue = queue.SimpleQueue()
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the command dies of it, and we by the pipe, with a save
    signal.signal(signal.SIGTERM, here.ask)
    threading.Thread(target=_listen, args=(pipe, inbox), daemon=True).start()
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    own = logging.getLogger("runner")
    own.addHandler(_Forward(here))
    own.propagate = False
    import torch

    import runner.engine.run  # noqa: F401 - both are here already where the worker was forked

    torch.set_num_threads(threads)
    torch.ones(
        1 << 20
    ).sum()  # torch's other threads take after this one, in how it rounds: they start while it is clean
    gc.collect()
    gc.freeze()  # what is here to stay is not looked at after every run
    while not here.stop and (task := inbox.get()) is not None:
        here.anew()
        cells, pack = task
        if pack == CHECK:
            number, cell = cells
            here.send("checked", number, *look(cell))
            _tidy()
            continue
        print(f"---- {time.strftime('%Y-%m-%d %H:%M:%S')}", *(f"{cell}  {cell.folder}" for cell in cells), sep="\n")
        if pack is None:
            status, line = _alone(here, cells[0])
            here.send("ended", 0, status, line)
        else:
            _packed(here, cells, pack)
        _tidy()
        if not here.stop:
            here.send("idle")
    if here.stop:
        sys.exit(128 + signal.Signals[here.stop])


def _tidy() -> None:
    """What the last task has left in memory goes."""
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _alone(here: _Here, cell: Cell) -> tuple[str, str]:
    """(status, one line)"""
    from runner.core.mistake import ConfigError
    from runner.engine.run import run

    folder = cell.folder  # now: it may be relative to where we are, and the run may go elsewhere
    try:
        with here.attempt():
            run(cell.config, cell.overrides, say=lambda text: _notes(here, text))
    except (KeyboardInterrupt, Stopped):
        return _stopped(here)
    except BaseException as error:
        if in_use(error):
            return "elsewhere", ""
        line = _line(error)
        known = isinstance(error, ConfigError) or (folder / "failed.json").exists()
        return "failed", line if known else f"{line}  ({near(here.log)})"
    return "done", ""


def _packed(here: _Here, cells: list[Cell], pack: str | int) -> None:
    from runner.sweep.pack import Unpackable, together

    numbers = {id(cell): number for number, cell in enumerate(cells)}

    def ended(cell: Cell, status: str, line: str) -> None:
        here.send("ended", numbers[id(cell)], status, line)

    try:
        with here.attempt():
            together(cells, pack, lambda line: here.send("say", line), ended)
    except (KeyboardInterrupt, Stopped):
        for number in numbers.values():
            here.send("ended", number, *_stopped(here))
    except Unpackable as reason:
        here.send("apart", str(reason))
    except Exception as error:  # out of memory, say; a run alone may do
        here.send("apart", f"{_line(error)}  ({near(here.log)})")


def _stopped(here: _Here) -> tuple[str, str]:
    here.stop = here.stop or "SIGTERM"  # a run takes the signal for itself
    return "stopped", ""


def _line(error: BaseException) -> str:
    """The error in a line, with the user's file where it comes from one, after its traceback in the log."""
    from runner.core.blame import blame, own_frame
    from runner.core.mistake import ConfigError

    if isinstance(error, ConfigError):
        return str(error)
    traceback.print_exception(error)
    return blame(error) if own_frame(error) else f"{type(error).__name__}: {error}"


def _notes(here: _Here, text: str) -> None:
    """Of what a run says its notices alone: the command says each of them once, however many runs have it."""
    for line in text.splitlines():
        if line.startswith("note "):
            here.send("say", line)


def _listen(pipe, inbox: queue.SimpleQueue) -> None:
    """In a thread of its own, so that the command's end is noticed in the middle of a run."""
    while True:
        try:
            task = pipe.recv()
        except (EOFError, OSError):
            os.kill(os.getpid(), signal.SIGTERM)
            task = None
        inbox.put(task)
        if task is None:
            return


def _divert(log: Path) -> None:
    """Whatever this process prints, in any language, goes to the log."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    how = {"mode": "w", "buffering": 1, "encoding": "utf-8", "errors": "backslashreplace", "closefd": False}
    sys.stdout, sys.stderr = Quiet(open(1, **how)), Quiet(open(2, **how))  # noqa: SIM115
