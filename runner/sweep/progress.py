"""How far something is that may take a minute: a line that counts on a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
SILENT = {True: 2.0, False: 10.0}  # seconds before the first word, on a terminal and elsewhere
MANY = 50  # items, before which it is no matter of many
APART = {True: 0.2, False: 10.0}  # seconds between words


def counting(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """The items as they come, and on stderr how many of them have come: nothing where all of them come at once.

    what : in the middle of "composed 1,200 of 20,000 runs".
    """
    begun = said = time.monotonic()
    live = sys.stderr.isatty()
    shown = 0
    try:
        for count, item in enumerate(items, start=1):
            yield item
            now = time.monotonic()
            if count >= MANY and now - begun > SILENT[live] and (not shown or now - said > APART[live]):
                said = now
                line = f"{what} {count:,} of {total:,} runs"
                _write(f"\r{line:<{shown}}" if live else f"{line}\n")
                shown = len(line)
    finally:
        if live and shown:
            _write(f"\r{' ' * shown}\r")


def _write(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody reads any more
        sys.stderr.write(text)
        sys.stderr.flush()
