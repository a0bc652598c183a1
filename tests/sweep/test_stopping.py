"""Two commands at once, and commands that are stopped."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from runner.__main__ import main
from runner.engine.run import run
from runner.record.folder import Record
from runner.sweep import pool
from runner.sweep.outcome import Outcome
from tests.sweep.pooled import Silent, assert_same, cell, go, hook, records, start, statuses, sweep
from tests.tiny import SMALL

# ---- two commands at once


@pytest.mark.parametrize("packed", [False, True])
def test_what_another_process_is_at_is_awaited(packed, place, capfd):
    """One run is held by somebody who finishes it, one by somebody who gives it up; both end as done."""
    cells = [cell(f"seed={seed}", *(["model.hidden=[4]"] if packed else [])) for seed in range(3)]
    away = run(cell("seed=0", *cells[0].overrides[1:], "name=elsewhere").config, [], say=lambda *_: None)
    log, found = place / "sweep" / "sweep.log", {}
    with Record(cells[0].folder, []) as first, Record(cells[1].folder, []):
        other = threading.Thread(target=lambda: found.update(go(cells, pack=3 if packed else "off", jobs=1)))
        other.start()
        until(lambda: log.exists() and "running elsewhere" in log.read_text(), "the line that says so")
        first.finish(away)
    other.join()
    assert [found[each.folder] for each in cells] == ["done"] * 3
    assert json.loads((cells[0].folder / "result.json").read_text())["name"] == "elsewhere"  # nobody did it again
    out, err = capfd.readouterr()
    assert err == ""
    assert out.count("] done ") == 3
    assert f"running elsewhere: 2 runs (process {os.getpid()} on " in out


def test_what_another_process_has_done_meanwhile_is_not_done_again(place, capfd):
    cells = [cell("seed=0"), cell("seed=1")]
    outcome = Outcome()
    outcome.update((each.folder, "missing") for each in cells)
    host = pool._Pool(cells, sweep(jobs=1), Path("sweep"), outcome)
    run(cells[0].config, [], say=lambda *_: None)
    worker = Silent()
    host._next(worker)
    assert [task.cells for task in worker.given] == [[cells[1]]]
    assert host.outcome[cells[0].folder] == "done"
    assert "[1/2] done" in capfd.readouterr().out


def test_after_a_failure_nothing_starts_where_the_user_says_so(place, capfd):
    cells = [cell("optim.lr=1e20", "schedule=constant"), *(cell(f"seed={seed}") for seed in range(2))]
    outcome = go(cells, jobs=1, on_error="stop")
    assert statuses(outcome, cells) == ["failed", "missing", "missing"]
    assert outcome.signal == ""
    assert "no further run starts" in capfd.readouterr().out
    assert not cells[1].folder.exists()
    again = go(cells[1:])  # the rest, another time
    assert statuses(again, cells[1:]) == ["done", "done"]
    marks = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    assert statuses(go(cells[1:]), cells[1:]) == ["done", "done"]
    assert marks == {path: path.stat().st_mtime_ns for path in place.rglob("*")}


def test_a_cell_given_twice_runs_once(place, capfd):
    outcome = go([cell("seed=0"), cell("seed=0", "train.workers=2")])  # workers change nothing that is computed
    assert list(outcome.values()) == ["done"]
    assert "[1/1] done" in capfd.readouterr().out


# ---- stopping


def until(condition, what: str) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError(f"not within five minutes: {what}")


def begun(cwd: Path, lines: int):
    """Whether a run that is not done has so many lines."""

    def look() -> bool:
        paths = [
            path for path in cwd.glob("outputs/runs/*/metrics.jsonl") if not (path.parent / "result.json").exists()
        ]
        return any(path.read_text().count("\n") >= lines for path in paths)

    return look


SWEEP = ["-m", "seed=0,1,2", "optim=sam", "hook=ema", "device=cpu", *SMALL, "train.epochs=100", "sweep.jobs=2",
         "sweep.pack=off"]  # fmt: skip


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks processes up in /proc")
def test_a_stopped_sweep_goes_on_as_if_nothing_had_happened(place, capfd):
    """Ctrl-C at a terminal, then the command killed, then SIGTERM; the fourth time it is let through."""
    process = start(*SWEEP, cwd=place)
    until(begun(place, 2), "the first lines")
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 130, err
    assert "Traceback" not in out + err
    assert "stopping after the present step" in out
    last = err.strip().splitlines()[-1]
    assert last.startswith("stopped by SIGINT: ")
    assert last.endswith("the same command goes on from here")
    assert "test_accuracy in" not in out  # no table of half a sweep
    folders = [path.parent for path in place.glob("outputs/runs/*/last.pt")]
    assert folders
    assert not any((path / "failed.json").exists() for path in folders)

    lines = max(len(records(path)) for path in folders)
    process = start(*SWEEP, cwd=place)
    until(begun(place, lines + 2), "some more lines")
    owners = [int(path.read_text().split()[1]) for path in place.glob("outputs/runs/*/.lock.owner")]
    assert owners
    process.kill()
    process.communicate(timeout=240)
    until(lambda: not any(map(alive, owners)), "the workers' end")
    logs = [path.read_text() for path in place.glob("outputs/runs/.sweeps/*/worker-*.log")]
    assert logs
    assert not any("Traceback" in log for log in logs)
    folders = [path.parent for path in place.glob("outputs/runs/*/last.pt")]
    assert not any(list(path.glob("failed.json")) + list(path.glob(".lock.owner")) for path in folders)

    lines = max(len(records(path)) for path in folders)
    capfd.readouterr()

    def end():
        until(begun(place, lines + 2), "some more lines")
        os.kill(os.getpid(), signal.SIGTERM)

    ender = threading.Thread(target=end)
    ender.start()
    assert main(SWEEP) == 143
    ender.join()
    assert "stopped by SIGTERM: " in capfd.readouterr().err

    assert main(SWEEP) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert "test_accuracy in" in out
    assert main([*SWEEP, "outputs_dir=whole"]) == 0
    names = sorted(path.parent.name for path in place.glob("whole/runs/*/result.json"))
    assert len(names) == 3
    for name in names:
        assert_same(place / "whole/runs" / name, place / "outputs/runs" / name)
    assert (place / "whole/runs/table.md").read_text() == (place / "outputs/runs/table.md").read_text()


def test_a_second_interrupt_ends_at_once(place, capfd):
    cells = [cell(f"seed={seed}", hook("Sleep", seconds=600.0, mark=str(place / "mark"))) for seed in range(2)]

    def press():
        until((place / "mark").exists, "the first step")
        os.kill(os.getpid(), signal.SIGINT)
        log = Path("sweep", "sweep.log")  # there from its first line on
        until(lambda: log.exists() and "stopping after" in log.read_text(), "the first interrupt is heard")
        os.kill(os.getpid(), signal.SIGINT)

    begin = time.monotonic()
    presser = threading.Thread(target=press)
    presser.start()
    outcome = go(cells, jobs=1)
    presser.join()
    assert time.monotonic() - begin < 300  # of the 600 s that the step takes
    assert statuses(outcome, cells) == ["stopped", "missing"]
    assert outcome.signal == "SIGINT"
    assert "stopped at once: 0 of 2" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
