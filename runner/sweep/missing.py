"""What one would type for the runs that a table lacks."""

import shlex
from pathlib import Path
from typing import Any

from runner.record.files import sessions
from runner.sweep.cells import counted, key_of
from runner.sweep.rows import shown

SHOWN = 20  # commands for missing runs


def command(overrides: list[str], seed: Any, own: list[str] | tuple[str, ...] = ()) -> str:
    """What one would type to get the run with these overrides and this seed. own : words for the user's options."""
    words = [word for word in overrides if key_of(word) != "seed"]
    return shlex.join(["python", "-m", "runner", *own, *words, f"seed={shown(seed)}"])


def own_folders(folder: Path) -> list[str]:
    """The `--config-dir DIR` of the command that last worked on the run; none where that is not known."""
    words = (sessions(folder) or [{}])[-1].get("argv")
    words = [str(word) for word in words] if isinstance(words, list) else []
    found = []
    for i, word in enumerate(words):
        if word in ("--config-dir", "-cd"):
            found += ["--config-dir", *words[i + 1 : i + 2]]
        elif word.startswith(("--config-dir=", "-cd=")):
            found += ["--config-dir", word.partition("=")[2]]
    return found


def remaining(commands: list[str]) -> str:
    """The commands for what is missing, one a line, under a line that says so; empty where nothing is."""
    if not commands:
        return ""
    lines, more = commands[:SHOWN], len(commands) - SHOWN
    lines += [f"and {counted(more)} more: the sweep's own command goes on with all of them"] if more > 0 else []
    return "\n".join(["", f"what is missing, {counted(len(commands))}:", *lines, ""])
