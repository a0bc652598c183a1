"""A bench's results as one Markdown file, without names or paths of the machine."""

import os
import platform
from collections.abc import Iterable
from datetime import date
from importlib import metadata
from pathlib import Path

from runner.record import processor
from scripts.bench.rounds import Row

RESULTS = Path(__file__).parent / "results"

LEGEND = """\
Every arm runs in a process of its own with {threads}. The arms are measured in turns, in random order in
every round; a ratio is taken within a round. The control is the first arm measured a second time, as another process: its
ratio would be 1 on a machine without disturbance, and a difference inside its range is not claimed. A target is met
or missed by the median."""


def machine() -> str:
    """The processor and how much of it there is."""
    return f"{processor()}, {os.cpu_count()} cores, {platform.system()}"


def versions(*packages: str) -> str:
    found = [f"Python {platform.python_version()}"]
    for package in ("torch", *packages):
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            found.append(f"{package} not installed")
    return ", ".join(found)


def table(rows: Iterable[Row]) -> str:
    head = "| what | ratio: median | middle half | range | control: median | middle half | range | target | result |"
    return "\n".join([head, "| --- " * 9 + "|", *(row.cells() for row in rows)])


def medians(seconds: dict[str, list[float]], unit: str, count: int = 1) -> str:
    """The median time of every arm, divided by `count`, for orientation: other machines have other times."""
    from statistics import median

    shown = (f"{name} {1e3 * median(values) / count:,.3g} ms" for name, values in seconds.items())
    return f"median per {unit}: {', '.join(shown)}"


def write(name: str, title: str, about: str, body: str, threads: int, packages: tuple[str, ...] = (), device: str = "") -> Path:
    """results/<name>.md; also printed."""
    module = "scripts.bench.gpu" if device else f"scripts.bench {name}"
    flag = "" if threads == 1 else f" --threads {threads}"
    legend = LEGEND.format(threads="one thread" if threads == 1 else f"{threads} threads")
    text = f"""\
# {title}

{about}

- command: `python -m {module}{flag}`
- date: {date.today().isoformat()}
- machine: {device and device + "; "}{machine()}; load average when written {os.getloadavg()[0]:.1f}
- versions: {versions(*packages)}

{legend}

{body}
"""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.md"
    path.write_text(text, encoding="utf-8")
    print(text, flush=True)
    return path
