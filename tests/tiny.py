"""Small real runs for tests, composed as the command composes them."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from functools import lru_cache
from multiprocessing import forkserver
from pathlib import Path

import torch

from runner.command.config import Train
from runner.command.listing import conf_dir
from runner.command.spelling import spelled
from runner.command.words import parse
from runner.core.distributed import device
from runner.engine.assemble import Elsewhere, assemble, prepare
from scripts import packing

ROOT = Path(__file__).parent.parent
SLIM = ["model=resnet20", "model._target_=tests.model.made.Slim"]  # what a residual network has, and quick in fp16
SMALL = ["dataset.subset=200", "train.batch_size=32", "train.epochs=2", "model.hidden=[16]"]


@lru_cache(maxsize=256)
def compose(*overrides: str) -> dict:
    """`runner.command.compose.compose`, from what earlier calls composed: a test would spend half its time there."""
    words = spelled(overrides, [conf_dir()], sweep=False)
    for word in words:
        parse(word)
    return packing.compose(words)


def trainer(*overrides: str, folder: Path | None = None, double: bool = False):
    """A Trainer that writes nothing but checkpoints into `folder`; with `double` in float64."""
    config = compose(*overrides)
    train = Train(**config["train"])
    where = device("cpu" if config["device"] == "auto" else config["device"])
    prepare(config["seed"], train, where)
    before = torch.get_default_dtype()
    if double:
        torch.set_default_dtype(torch.float64)
    try:
        built, *_ = assemble(config, train, where, Elsewhere(folder))
    finally:
        torch.set_default_dtype(before)
    built.tell = lambda *_: None
    built.model.train()
    return built


def command(*words: str, cwd: Path, env: dict | None = None, timeout: float = 240, python: str | None = None):
    """`python -m runner words`; stdout and stderr as text.

    In a child of this process, which has imported everything; in a new one of `python` where that is given, with
    another number of threads, which torch reads when it is loaded, or with modules that Hydra looks for once.
    """
    env = env or {}
    if python is None and env.get("OMP_NUM_THREADS", "1") == "1" and "PYTHONPATH" not in env:
        done = forked(*words, cwd=cwd, env=env)
        return subprocess.CompletedProcess(words, done.wait(timeout), done.out, done.err)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **env}
    argv = [python or sys.executable, "-m", "runner", *words]
    return subprocess.run(argv, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)


class Forked:
    """A command in a child of this process, which has imported everything: a twentieth of the time of a new one.

    call : what the child does; its value is the exit status, and an exception that leaves it is 99 with a traceback.
    stdout, stderr : descriptors; files of which `out` and `err` read, unless given.
    """

    def __init__(self, call, cwd: Path, stdout: int | None = None, stderr: int | None = None):
        self.files = [tempfile.TemporaryFile() for _ in range(2)]
        places = [
            file.fileno() if given is None else given for file, given in zip(self.files, (stdout, stderr), strict=True)
        ]
        self.status: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            status = 99
            try:
                os.chdir(cwd)
                for number, place in enumerate(places, start=1):
                    os.close(number) if place == CLOSED else os.dup2(place, number)
                for name, place, number in (("stdout", places[0], 1), ("stderr", places[1], 2)):
                    setattr(sys, name, None if place == CLOSED else open(number, "w", closefd=False))
                signal.signal(signal.SIGINT, signal.default_int_handler)
                logging.getLogger().handlers.clear()  # pytest's own
                logging.getLogger().setLevel(logging.WARNING)
                status = call()
                for stream in (sys.stdout, sys.stderr):  # as the interpreter's end does, whose status is then 120
                    if stream is not None:
                        stream.flush()
            except BaseException:
                with contextlib.suppress(Exception):
                    os.write(2, traceback.format_exc().encode())
            os._exit(status)

    def kill(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def poll(self) -> int | None:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def wait(self, timeout: float = 60) -> int:
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                self.kill(signal.SIGKILL)
                raise TimeoutError(self.err)
            time.sleep(0.01)
        return self.status

    @property
    def out(self) -> str:
        return self._read(0)

    @property
    def err(self) -> str:
        return self._read(1)

    def _read(self, which: int) -> str:
        self.files[which].seek(0)
        return self.files[which].read().decode()


CLOSED = -1


def forked(*words: str, cwd: Path, env: dict | None = None, **streams) -> Forked:
    """`python -m runner words` in a child of this process."""

    def call() -> int:
        from runner.__main__ import main

        os.environ.update(env or {})
        sys.argv = [str(ROOT / "runner" / "__main__.py"), *words]
        forkserver._forkserver = forkserver.ForkServer()  # one of its own, if any
        return main(list(words))

    return Forked(call, cwd, **streams)
