"""A worker process of the pool: it takes one task after another, and says how each ended."""

import contextlib
import faulthandler
import gc
import logging
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from runner.core.output import Quiet, near
from runner.record.folder import Stopped
from runner.sweep.cells import Cell
from runner.sweep.elsewhere import in_use
from runner.sweep.preflight import CHECK, look


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
        from runner.core import threads

        os.chdir(self.folder)
        if dict(os.environ) != self.environment:
            os.environ.clear()
            os.environ.update(self.environment)
        signal.signal(signal.SIGTERM, self.ask)
        threads.allow(self.threads)

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
