"""Whose file an exception comes from, in one line."""

import inspect
import sysconfig
import traceback
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent.parent
ENGINE = {HERE / room for room in ("core", "command", "record", "engine")}  # who calls, and is not to blame


def blame(error: BaseException) -> str:
    """An exception in one line: what it says, and the file and line of the user's that it comes from; else of
    this package's, where it is not the one that called.

    Files of the user's are those that no package manager has put where they are, and that are not this package's.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{type(error).__name__}: {error.msg} ({_shown(error.filename)}, line {error.lineno})"
    said = " ".join(str(error).split())
    said = said if len(said) <= 300 else f"{said[:300]} ..."
    text = f"{type(error).__name__}: {said}" if said else type(error).__name__
    if isinstance(error, ModuleNotFoundError):
        text = said
    ours = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).parent.is_relative_to(HERE)]
    frame = own_frame(error) or next(
        (f for f in reversed(ours) if Path(f.filename).parent not in {HERE, *ENGINE}), None
    )
    return f"{text} ({_shown(frame.filename)}, line {frame.lineno}, in {frame.name})" if frame else text


def source(target: Any) -> str:
    """' (file)' of a class or function of the user's, for a message; '' for any other."""
    try:
        file = inspect.getsourcefile(target) or ""
    except TypeError:
        return ""
    return f" ({_shown(file)})" if is_own(file) else ""


def own_frame(error: BaseException) -> traceback.FrameSummary | None:
    """The innermost frame of an exception that is in a file of the user's."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if is_own(frame.filename):
            return frame
    return None


def is_own(file: str) -> bool:
    """Whether a file is the user's: neither this package's nor Python's nor an installed one."""
    path = Path(file)
    if not path.is_absolute() or "site-packages" in path.parts or "dist-packages" in path.parts:
        return False
    return not any(path.is_relative_to(place) for place in (HERE, *_STDLIB))


_STDLIB = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))


def _shown(file: str) -> str:
    """A path, from the working folder where it lies below it."""
    path = Path(file)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
