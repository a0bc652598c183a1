"""What a sweep says before its first run and after its last: what is there, what it made, what is missing."""

import sys
from collections.abc import Iterable
from pathlib import Path

from runner.core.output import near
from runner.record import again
from runner.sweep.cells import Cell, counted, done, home
from runner.sweep.report import draw
from runner.sweep.table import save, table


def anew(cells: list[Cell]) -> None:
    """What the command's `--again` asks for, and what became of it. Raises ConfigError where a run is going on."""
    for line in again.prepare([(cell.config, cell.folder) for cell in cells]):
        print(line, flush=True)


def stale(cells: Iterable[Cell]) -> dict[Path, str]:
    """Folder -> why what is there is not the result of this cell as it would be computed now, or damaged.

    The data are loaded for one finished cell of every data set, and for all of them where they differ there.
    """
    found: dict[Path, str] = {}
    differs: dict[str, bool] = {}
    for cell in filter(done, cells):
        option = cell.config["choices"]["dataset"]
        why = again.trouble(cell.config, cell.folder, data=False)
        if why is None and differs.get(option, True):
            why = again.trouble(cell.config, cell.folder)
            differs.setdefault(option, why is not None)
        if why:
            found[cell.folder] = why
    return found


def announce(cells: list[Cell]) -> None:
    """The heading of a sweep."""
    before = sum(map(done, cells))
    print(f"sweep of {counted(len(cells))} in {near(home(cells))}, {before} of them done before\n", flush=True)
    warn(stale(cells))


def warn(stale: dict[Path, str]) -> None:
    """Said before and after a sweep: runs that it neither repeats nor averages."""
    if stale:
        more = f"; and {counted(len(stale) - 1)} more" if len(stale) > 1 else ""
        print(f"{next(iter(stale.values()))}{more}", file=sys.stderr)
        whose = "It is left as it was" if len(stale) == 1 else f"These {len(stale)} are left as they were"
        print(f"{whose}, out of the table; --again=changed runs anew", file=sys.stderr, flush=True)


def conclude(cells: list[Cell], why: dict[Path, str] | None = None) -> int:
    """Print and save the table of the cells that are done, list the others. Returns the exit status, 0 or 1.

    why: folder -> what is known of a run that failed before it had a folder.
    """
    why, old = why or {}, stale(cells)
    if any(map(done, cells)):
        report = table([cell.folder for cell in cells], out=old)
        print(f"\n{report.text()}", end="", flush=True)
        save(report, home(cells))
        draw(report, home(cells) / "table.png")
        print(
            f"\nsaved as {near(home(cells) / 'table')}.md, .tex, .csv, .png; the runs in {near(home(cells))}",
            flush=True,
        )
    failed, left = {}, []
    for cell in cells:
        trace = cell.folder / "failed.json"
        if not done(cell) and (trace.exists() or cell.folder in why):
            failed.setdefault(str(trace) if trace.exists() else why[cell.folder], []).append(cell)
        elif not done(cell):
            left.append(f"  {cell}")
    count = sum(map(len, failed.values()))
    said = [
        f"  {of[0]}{f' and {len(of) - 1} more of its kind' if len(of) > 1 else ''}   ({line})"
        for line, of in failed.items()
    ]
    for number, lines, what in (
        (count, said, "failed"),
        (len(left), left, "are not done; the same command goes on with them"),
    ):
        if lines:
            print(f"\n{number} of {len(cells)} runs {what}:", *lines, sep="\n", file=sys.stderr)
    warn(old)
    return 1 if failed or left or old else 0
