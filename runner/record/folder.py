"""A run's folder `outputs/<name>/<run id>/`: what is written there, when, and by whom.

.hydra/config.yaml, overrides.yaml   the resolved config; what the user typed
environment.json, diff.patch         where and with what it ran, one entry per session
metrics.jsonl                        one line per record: the record of truth, of which loggers are exporters
curves.png                           drawn at the end, and where the targets are classes:
reliability.png, classes.png         calibration; accuracy of each class (of the last epoch, on the test split)
confusion.png                        which class was taken for which
quantized.pt, quantization.png       of quantized runs: what is deployed; bits and error of each layer
samples.npz, samples.png             of losses that make inputs: 64 of them, in the data set's units
partition.npz, .png, participation.json  of federations: who has which sample; the clients of every round
failed.json                          the error, until the next start
result.json                          last and atomically: its presence means done
"""

import json
import logging
import os
import shlex
import socket
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from runner.core.mistake import ConfigError
from runner.record.environment import code, environment
from runner.record.files import history, plain, records, sessions, write_atomic, write_json

if TYPE_CHECKING:
    from runner.logger import Logger

warn = logging.getLogger(__name__).warning


class Stopped(Exception):
    """Training was interrupted and can go on from the last checkpoint."""


class Died(RuntimeError):
    """Processes that work for a run were killed, in one line; the run can go on from the last checkpoint."""


class InUse(ValueError):
    """Another process holds the run's folder."""


class Record:
    """The folder of one run, locked against a second process from `with` to its end.

        with Record(folder, loggers) as record:
            record.start(config, overrides, resumed_lines)
            record.log({"step": 100, "epoch": 1, "train_loss": 0.7})
            record.finish(result)

    An exception inside `with` goes on as it is; what it means is noted on the way: KeyboardInterrupt, SystemExit and
    `Stopped` close the loggers as 'stopped', any other as 'failed' and failed.json keeps it. A logger that raises is
    warned about once and dropped: the local files are the record.

    Parameters
    ----------
    folder : made where missing.
    loggers : opened by `start`, in order.

    Raises
    ------
    InUse
        On entering, where another live process holds the folder; the line names its pid and host.
    """

    def __init__(self, folder: Path, loggers: "list[Logger]"):
        self.folder = Path(folder)
        self.path = self.folder / "metrics.jsonl"
        self.loggers = list(loggers)
        self._open: list[Logger] = []
        self._file = None
        self._lines = 0
        self._size = 0
        self._step = None
        self._result = None
        self.lost = ""  # what `start` did not find of the lines that a checkpoint knows of
        self.beside = 1  # the runs that are trained in one pass with this one, itself included

    # -- the lock

    def __enter__(self) -> "Record":
        from filelock import FileLock, Timeout

        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.folder / ".lock")  # the kernel gives it back when the process dies
        owner = self.folder / ".lock.owner"
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            who = owner.read_text().strip() if owner.exists() else "another process"
            raise InUse(f"{self.folder} is in use by {who}: wait until it ends, or stop it") from None
        try:
            write_atomic(owner, f"process {os.getpid()} on {socket.gethostname()}\n")
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, kind, error: BaseException | None, trace) -> None:
        try:
            if self._result is not None:
                self._close("done", self._result)
            elif error is None or isinstance(error, KeyboardInterrupt | SystemExit | Stopped):
                self._close("stopped", None)
            elif isinstance(error, ConfigError) and self._file is None:  # refused, and the run was not touched
                pass
            else:
                try:
                    self.fail(error)
                except OSError as problem:  # a full disk must not hide the error itself
                    if not isinstance(error, OSError):  # else it is the same trouble
                        warn("%s", problem)
                self._close("failed", None)
        finally:
            if self._file is not None:
                self._file.close()
                self._file = None
            (self.folder / ".lock.owner").unlink(missing_ok=True)
            self._lock.release()

    # -- start, log, finish

    def start(self, config: dict, overrides: list[str], resumed_lines: int | None) -> None:
        """Write what is known before the first step and open the loggers.

        config: resolved, nested, plain. overrides: what the user typed. resumed_lines: how many lines metrics.jsonl
        had when the checkpoint was taken (later ones are dropped: they are computed again and come out the same), or
        None for a run from its beginning.

        Raises ValueError with one line where a logger's package is not installed.
        """
        from omegaconf import OmegaConf

        for name in ("result.json", "failed.json"):
            if (self.folder / name).is_dir():
                raise ValueError(f"{self.folder / name} is a folder, and should be a file: move it away")
            (self.folder / name).unlink(missing_ok=True)
        (self.folder / ".hydra").mkdir(exist_ok=True)
        write_atomic(self.folder / ".hydra" / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
        write_atomic(self.folder / ".hydra" / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(list(overrides))))
        self._truncate(resumed_lines or 0)
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        self._note_session(now, config, resumed_lines)
        self._note_index(now, overrides, resumed_lines is not None)
        for logger in self.loggers:
            self._open_logger(logger, config, resumed_lines is not None)

    def _truncate(self, lines: int) -> None:
        kept = records(self.path)[:lines]
        if len(kept) < lines:
            self.lost = f"{self.path} holds {len(kept)} of the {lines} lines that the checkpoint knows of"
        self._lines = len(kept)
        self._size = kept[-1][1] if kept else 0
        self._step = kept[-1][0].get("step") if kept else None
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - closed in __exit__
        if self.path.is_file() and self.path.stat().st_size > self._size:
            os.truncate(self.path, self._size)

    def log(self, record: dict) -> None:
        """Append one line, whole or not at all, and pass its numbers on to the loggers. Non-finite floats are null.

        Raises OSError with one line that names the file where it cannot be written (a full disk, a quota).
        """
        record = plain(record)
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        try:
            done = 0
            while done < len(line):  # a nearly full disk takes part of a line first, and refuses the rest
                done += self._file.write(line[done:])
        except OSError as error:
            with suppress(OSError):  # else history() and the next start leave the torn line out
                os.truncate(self.path, self._size)
            raise OSError(error.errno, f"cannot write {self.path}: {error.strerror}") from error
        self._size += len(line)
        self._lines += 1
        self._step = record.get("step", self._step)
        shown = {key: value for key, value in record.items() if value is not None}
        for logger in list(self._open):
            self._guard(logger, "log", shown)

    def sync(self) -> None:
        """Have the disk hold what was logged."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OSError(error.errno, f"cannot write {self.path}: {error.strerror}") from error

    @property
    def lines(self) -> int:
        """How many lines metrics.jsonl has: what a checkpoint must remember for `start`."""
        return self._lines

    def history(self) -> list[dict]:
        return history(self.folder)

    def finish(self, result: dict, pictures: dict[str, Callable[[Path], None]] | None = None) -> None:
        """Draw curves.png and what else there is to draw, write result.json, close the loggers as 'done'.

        pictures : name -> what draws it to a path.
        """
        result = plain(result)
        for name, draw in ({"curves.png": self._curves} | (pictures or {})).items():
            try:
                draw(self.folder / name)
            except Exception as error:  # a picture that cannot be drawn is no reason to call the training not done
                warn("%s was not drawn: %s: %s", name, type(error).__name__, error)
        write_json(self.folder / "result.json", result)
        self._result = result
        self._close("done", result)

    def _curves(self, path: Path) -> None:
        from runner.record.curves import draw

        draw(self.history(), path)

    def fail(self, error: BaseException) -> None:
        """Keep the error in failed.json, until the next start."""
        content = {
            "status": "failed",
            "type": type(error).__name__,
            "message": str(error),
            "step": getattr(error, "step", self._step),
            "traceback": "".join(traceback.format_exception(error)),
        }
        write_json(self.folder / "failed.json", content)

    # -- loggers

    def _open_logger(self, logger: "Logger", config: dict, resumed: bool) -> None:
        self._open.append(logger)
        try:
            logger.start(self.folder, self.folder.name, config, resumed)
        except ImportError as error:
            self._open.remove(logger)
            option = type(logger).__module__.rpartition(".")[2]
            message = f"logger={option} needs a package that is not here ({error}): pip install {error.name or option}"
            raise ValueError(message) from error
        except Exception as error:
            self._drop(logger, error)

    def _guard(self, logger: "Logger", method: str, *arguments) -> None:
        try:
            getattr(logger, method)(*arguments)
        except Exception as error:
            self._drop(logger, error)

    def _drop(self, logger: "Logger", error: Exception) -> None:
        if logger in self._open:
            self._open.remove(logger)
        name, what = type(logger).__name__, " ".join(str(error).split())
        warn("%s is left out from here on: %s: %s", name, type(error).__name__, what)

    def _close(self, status: str, result: dict | None) -> None:
        while self._open:
            logger = self._open.pop()
            self._guard(logger, "finish", status, result)

    # -- the environment

    def _note_session(self, now: str, config: dict, resumed_lines: int | None) -> None:
        path = self.folder / "environment.json"
        before = sessions(self.folder)
        if path.exists() and not before:  # it decides nothing: what is there is kept, and a new list begun
            os.replace(path, path.with_name("environment.damaged.json"))
            warn("%s was damaged, and is kept as environment.damaged.json", path)
        session = {"start": now, "resumed_lines": resumed_lines, "side_by_side": self.beside}
        session |= environment(str(config.get("device", "cpu")))
        git, patch = code()
        session["git"] = git and dict(git)
        if patch:
            number = len(before) + 1
            name = "diff.patch" if number == 1 else f"diff.{number}.patch"
            session["git"]["diff"] = name
            write_atomic(self.folder / name, patch)
        write_json(path, {"sessions": [*before, session]})

    def _note_index(self, now: str, overrides: list[str], resumed: bool) -> None:
        typed = shlex.join(overrides) or "(defaults)"
        line = f"{self.folder.name}  {now}  {typed}{'  (resumed)' if resumed else ''}".replace("\n", " ")
        path = self.folder.parent / "index.txt"
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                os.write(descriptor, line.encode() + b"\n")  # one write: lines of concurrent runs do not mix
            finally:
                os.close(descriptor)
        except OSError as error:
            raise OSError(error.errno, f"cannot write {path}: {error.strerror}") from error
