"""What is printed never ends a run: a closed pipe, a full disk or a lost terminal costs the words, not the work.

Everything here that speaks (prints, progress bars, warnings, tracebacks) writes to sys.stdout and sys.stderr. Within
`unbreakable` these are silent from the first write on that fails, and the exit status stays that of the run.
"""

import contextlib
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path


class Quiet:
    """A text stream whose failures are nobody's: after the first one it takes everything and writes nothing."""

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        self._try(lambda: self.stream.write(text))
        return len(text)

    def writelines(self, lines) -> None:
        self.write("".join(lines))

    def flush(self) -> None:
        self._try(self.stream.flush)

    def isatty(self) -> bool:
        try:
            return self.stream.isatty()
        except (OSError, ValueError):
            return False

    def _try(self, act) -> None:
        try:
            act()
        except (OSError, ValueError):  # ValueError: a closed file
            _mute(self.stream)


def _mute(stream) -> None:
    """What is left in its buffers, and whatever else writes to its descriptor, goes to nowhere."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


@contextlib.contextmanager
def unbreakable() -> Iterator[None]:
    """Within, nothing that is printed raises. May be entered again within itself."""
    before = sys.stdout, sys.stderr
    if isinstance(sys.stdout, Quiet) and isinstance(sys.stderr, Quiet):
        yield
        return
    for number in (1, 2):  # closed by the shell (`>&-`): else the next file that is opened would be taken for it
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                if nowhere != number:
                    os.dup2(nowhere, number)
                    os.close(nowhere)
    own = tuple(Quiet(open(os.devnull, "w") if stream is None else stream) for stream in before)  # noqa: SIM115
    sys.stdout, sys.stderr = own
    try:
        yield
    finally:
        for stream in own:
            stream.flush()
        for name, mine, old in zip(("stdout", "stderr"), own, before, strict=True):
            if getattr(sys, name) is mine:
                setattr(sys, name, old)


def at_once(line: str) -> None:
    """A line for the user from within a signal's handler, where the streams may be in the middle of a write."""
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())


def fitted(text: str) -> str:
    """Lines as wide as the terminal, where that is what they go to: a span's line (epoch, round) loses its last fields,
    which metrics.jsonl has, any other goes on below, set in. As they are where they go to a file or a pipe."""
    if not sys.stdout.isatty():
        return text
    width = max(shutil.get_terminal_size().columns, 40)
    return "\n".join(_fitted(line, width) for line in text.split("\n"))


def _fitted(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    if line.startswith(("epoch ", "round ")):
        while len(line) > width and "  " in line.strip():
            line = line.rpartition("  ")[0].rstrip()
        return line
    kept = {"break_long_words": False, "break_on_hyphens": False, "replace_whitespace": False}
    return "\n".join(textwrap.wrap(line, width, subsequent_indent=" " * 8, **kept))


def loading() -> None:
    """On a terminal, at once: a word that the next line takes the place of, while what is heavy is imported."""
    if sys.stdout.isatty() and sys.stderr.isatty() and "torch" not in sys.modules:
        print("loading ...", end="\r", file=sys.stderr, flush=True)


def near(path: Path) -> str:
    """A path from the working folder where it lies below it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
