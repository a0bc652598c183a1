"""What is printed never ends a run: a closed pipe, a full disk or a lost terminal costs the words, not the work.

Everything here that speaks (prints, progress bars, warnings, tracebacks) writes to sys.stdout and sys.stderr. Within
`unbreakable` these are silent from the first write on that fails, and the exit status stays that of the run.
"""

import contextlib
import os
import sys
from collections.abc import Iterator


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
