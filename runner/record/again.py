"""What a run finds in its folder: whether it is done, and by what; and `--again`, which moves it aside."""

import os
from collections.abc import Iterable
from pathlib import Path

from runner.core import output
from runner.core.mistake import ConfigError
from runner.record import provenance
from runner.record.files import finished, history, sessions

EARLIER = ".earlier"  # beside the runs' folders: what was moved aside
ALL, CHANGED = "all", "changed"
wanted = ""  # of the command: "", or which runs `--again` means


def flag(argv: list[str]) -> tuple[list[str], str]:
    """The words without `--again`, and which runs it means. Raises ConfigError."""
    rest, found = [], ""
    for word in argv:
        name, equals, value = word.partition("=")
        if name != "--again":
            rest.append(word)
        elif equals and value not in (ALL, CHANGED):
            raise ConfigError(
                f"{word}: --again runs everything anew, --again={CHANGED} what is of other code or data, or damaged"
            )
        else:
            found = value or ALL
    return rest, found


def fingerprint(config: dict) -> str | None:
    """Of the data as they are now; None where they cannot be read, or not without asking somebody else."""
    from runner.command.build import build
    from runner.command.config import sources

    try:
        dataset = build(config["dataset"], "dataset", seed=config["seed"], **sources(config))
        if not dataset.local:
            return None
        dataset.prepare()
        return dataset.record.get("fingerprint")
    except Exception:  # a user's own may raise anything; a run that needs them says what
        return None


def trouble(config: dict, place: Path, data: bool = True) -> str | None:
    """Why what `place` holds is no result of the run that `config` describes, in a line; None where it may be one, or
    where there is none. data : whether to load the data, where they are on this machine, and compare them.
    """
    try:
        result = finished(place)
    except ValueError as damage:
        return f"{damage}. The run was finished: move that file away and the same command goes on from last.pt"
    if result is None:
        return None
    made, now = result.get("made"), provenance.code(config)
    if data and isinstance(made, dict) and made.get("data"):
        now["data"] = fingerprint(config)
    if differ := provenance.changed(made, now):
        return f"{place} is done, but {'; '.join(differ)}: {provenance.AGAIN}"
    return None


def begun(config: dict, place: Path) -> str | None:
    """The same of a run that is not done: whether its checkpoint can be gone on from."""
    from runner.core import checkpoint

    path = place / "last.pt"
    if not path.exists():
        return None
    try:
        state = checkpoint.load(path)
    except (ValueError, OSError) as damage:
        return torn(str(damage), place)
    return "; ".join(provenance.changed(state.get("made"), provenance.code(config))) or None


def channels_last(place: Path, asked: str | bool) -> str | bool:
    """`train.channels_last` of a run that goes on: what its checkpoint was saved with, as the optimizer's state is in
    the weights' order; else what is asked for."""
    from runner.core import checkpoint

    try:
        made = checkpoint.load(place / "last.pt").get("made")
    except (ValueError, OSError):  # none, or damaged, which `Job.resume` says
        return asked
    return (made or {}).get("channels_last", asked is True)  # before it was noted it was what was asked for, or not


def greeting(config: dict, result: dict, place: Path) -> str:
    """What is said of a run that is done."""
    made = result.get("made") if isinstance(result.get("made"), dict) else {}
    last = (sessions(place) or [{}])[-1]
    when = result.get("finished") or last.get("start") or "at a time that is not recorded"
    by = provenance.commit(made or {"git": last.get("git")})
    lines = [
        f"already done, nothing to do: {output.near(place)}",
        f"done    {str(when).replace('T', ' ')[:16]} by {by}",
    ]
    said = result.get("notices") if isinstance(result.get("notices"), list) else []
    lines += [f"note    {line}" for line in [*said, *provenance.drifted(made, provenance.code(config))]]
    return "\n".join([*lines, "again   the same command with --again; what is there is kept beside"])


def reached(place: Path) -> int | None:
    """The epoch of the last line of metrics.jsonl; None where there is none to be read."""
    try:
        lines = history(place)
    except (ValueError, OSError):
        return None
    return lines[-1].get("epoch") if lines else None


def torn(why: str, place: Path) -> str:
    """What is said of a checkpoint that cannot be gone on from: what is still there, and how to go on."""
    there = [name for name in ("best_val.pt", "best_test.pt") if (place / name).is_file()]
    if epoch := reached(place):
        there.append(f"metrics.jsonl up to epoch {epoch}")
    start = (
        f" (checkpoint={place / there[0]} starts another run from its weights)" if there[:1] == ["best_val.pt"] else ""
    )
    kept = f"still there: {', '.join(there)}{start}" if there else "nothing else of the run is there"
    return f"{why}, so the run cannot go on; {kept}. --again starts it anew and keeps what is there"


def move(places: Iterable[Path]) -> list[Path]:
    """Move the folders that exist to names of their own under `.earlier`, beside them. Returns the new places.

    Raises ConfigError where another process holds one of them; those before it are moved then.
    """
    from filelock import FileLock, Timeout

    moved = []
    for place in places:
        if not place.is_dir():
            continue
        lock = FileLock(place / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ConfigError(f"{place} is in use by another process: wait until it ends, or stop it") from None
        try:
            number = 1
            while (to := place.parent / EARLIER / f"{place.name}-{number}").exists():
                number += 1
            to.parent.mkdir(exist_ok=True)
            os.rename(place, to)
        finally:
            lock.release()
        moved.append(to)
    return moved


def prepare(runs: list[tuple[dict, Path]]) -> list[str]:
    """Carry out what the command's `--again` asks for. runs : (config, folder). Returns lines for the user."""
    if not wanted:
        return []
    chosen = [place for config, place in runs if wanted == ALL or trouble(config, place) or begun(config, place)]
    moved = move(chosen)
    if not moved:
        return ["--again: nothing is there that it means"]
    if len(moved) == 1:
        return [f"--again: what was there is now {moved[0]}"]
    return [f"--again: what was there of {len(moved)} runs is now in {moved[0].parent}"]
