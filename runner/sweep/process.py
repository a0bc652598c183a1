"""A worker's process, as the command starts it and sees it."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from runner.sweep.cells import Cell
from runner.sweep.tasks import Task
from runner.sweep.worker import serve

# What every run needs; torch's optimizers import its compiler
PRELOAD = ["torch", "torch._dynamo", "runner.engine.run", "runner.sweep.worker", "runner.sweep.pack"]
PRELOAD += ["matplotlib.figure", "matplotlib.backends.backend_agg"]
STOPPING = {signal.SIGINT, signal.SIGTERM} | ({signal.SIGHUP} if hasattr(signal, "SIGHUP") else set())


def context():
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
    if context().get_start_method() == "forkserver":
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


class Worker:
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
        self.process = context().Process(target=serve, args=arguments, name=f"runner-worker-{number + 1}")
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
