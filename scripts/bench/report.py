"""A bench's results as one Markdown file, without names or paths of the machine."""

import os
import platform
from datetime import date
from importlib import metadata
from pathlib import Path

from runner.record.environment import processor
from scripts.bench.compare import Found

RESULTS = Path(__file__).parent / "results"
METHOD = """\
In every round {where} a new process with {threads}. A round is several turns, in each of which every arm is
measured once, in random order; an arm's time in a round is the median of its turns. Ratios are taken within rounds. The
control is the first arm set up and measured a second time: without disturbance its ratio would be 1, and a
difference from 1 inside its range is not claimed. Whether a target is met goes by the median. rounds.py has more."""
APART, TOGETHER = "every arm is", "all arms with one control share"
HEAD = "| what | ratio | range | control | range | target | result |"


def machine() -> str:
    """The processor and how much of it there is."""
    return f"{processor()}, {os.cpu_count()} cores, {platform.system()}"


def versions(packages: tuple[str, ...]) -> str:
    found = [f"Python {platform.python_version()}"]
    for package in ("torch", *packages):
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            found.append(f"{package} not installed")
    return ", ".join(found)


def text(
    title: str,
    about: str,
    found: Found,
    command: str,
    packages: tuple[str, ...],
    threads: int = 1,
    device: str = "",
    where: str = APART,
) -> str:
    rows, notes = found
    facts = [
        f"command: `{command}`",
        f"date: {date.today().isoformat()}",
        f"machine: {', '.join(filter(None, (device, machine())))}; load average at the end {os.getloadavg()[0]:.1f}",
        f"versions: {versions(packages)}",
    ]
    table = [HEAD, "| --- " * 7 + "|", *(row.cells() for row in rows)] if rows else []
    method = METHOD.format(where=where, threads="one thread" if threads == 1 else f"{threads} threads")
    parts = [f"# {title}", about, *map(_list, (facts,)), method, "\n".join(table), _list(notes)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _list(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def write(name: str, content: str) -> None:
    """results/<name>.md; also printed."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(content, encoding="utf-8")
    print(content, flush=True)
