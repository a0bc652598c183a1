"""The pool of warm workers: what it runs, what it survives, and that nothing of one run reaches the next."""

import json
import os

from tests.sweep.pooled import assert_same, cell, go, hook, statuses
from tests.tiny import SMALL, command

# ---- nothing leaks


def test_a_warm_run_is_a_fresh_run_bit_for_bit(place):
    """After runs in another precision, strictly deterministic, with other threads, and one that leaves a mess."""
    words = ["optim=sam", "augment=crop_flip", "hook=ema", hook("Look"), "seed=3"]
    before = [
        cell("train.precision=bf16", "loss=poly", "model=cnn"),
        cell("train.deterministic=true", "optim=adam"),
        cell(hook("Spoil"), "seed=1"),
    ]
    last = cell(*words)
    outcome = go([*before, last], jobs=1)
    assert statuses(outcome, [*before, last]) == ["done", "done", "failed", "done"]
    log = (place / "sweep" / "worker-1.log").read_text()
    assert log.count("RuntimeError: spoilt") == 1  # one process trained them all
    assert not (place / "sweep" / "worker-2.log").exists()
    fresh = command("device=cpu", *SMALL, *words, "outputs_dir=fresh", cwd=place)
    assert fresh.returncode == 0, fresh.stderr
    (folder,) = (place / "fresh" / "runs").glob("*/")
    assert folder.name == last.folder.name
    seen = json.loads((folder / "seen.json").read_text())
    assert seen["denormal"] > 0
    assert json.loads((last.folder / "seen.json").read_text()) == seen
    assert_same(last.folder, folder)


# ---- deaths and failures


def test_what_fails_costs_nobody_else_anything(place, capfd):
    cells = [
        cell("seed=0", hook("Kill", mark=str(place / "mark"))),
        cell("seed=1", hook("Kill")),
        cell("seed=2", "optim.lr=1e20", "schedule=constant"),
        cell("seed=3", "model=lenet"),
        cell("seed=4", hook("Loud")),
        cell("seed=5", hook("Kill", mark=str(place / "term"), number=15)),
    ]
    outcome = go(cells)
    assert statuses(outcome, cells) == ["done", "failed", "failed", "failed", "done", "done"]
    died = json.loads((cells[1].folder / "failed.json").read_text())
    assert "was killed by SIGKILL, perhaps out of memory, twice" in died["message"]
    assert died["status"] == "failed"
    diverged = json.loads((cells[2].folder / "failed.json").read_text())
    assert diverged["type"] == "NonFinite"
    assert "lenet needs images" in outcome.why[cells[3].folder]
    assert not cells[3].folder.exists()
    out, err = capfd.readouterr()
    assert out.count("] done ") == 3
    assert err.count("] failed ") == 3
    assert err.count("once more, alone") == 3  # two killed, and one that was told to stop by nobody knows whom
    assert "[6/6]" in out + err
    assert "from the depths" not in out + err
    assert "from the depths" in "".join(path.read_text() for path in (place / "sweep").glob("*.log"))
    (line,) = (line for line in err.splitlines() if "optim.lr=1e20" in line)
    assert "not finite at step" in line
    assert str(cells[2].folder.relative_to(place) / "failed.json") in line
    assert "Traceback" not in out + err


def test_what_does_not_fit_fails_before_the_sweep_once(place, capfd):
    """Of each kind of run one is assembled; its twelve seeds are one line, and what it has to say is said once."""
    wrong = [cell(f"seed={seed}", "model=lenet") for seed in range(12)]
    cells = [*wrong, cell("seed=0", hook("Say", line="nothing comes of this")), cell("seed=1")]
    outcome = go(cells)
    assert statuses(outcome, cells) == ["failed"] * 12 + ["done"] * 2
    out, err = capfd.readouterr()
    assert err.count("\n") == 1, err
    (line,) = err.splitlines()
    assert line.startswith("[12/14] failed  12 runs such as seed=0 model=lenet  ")
    assert "lenet needs images" in line
    (note,) = (line for line in out.splitlines() if "nothing comes of this" in line and line.startswith("note"))
    assert note.startswith("note    nothing comes of this  (seed=0 ++hook.say=")
    assert not any(each.folder.exists() for each in wrong)
    assert [line[:11] for line in out.splitlines() if " done " in line] == ["[13/14] don", "[14/14] don"]
    stopped = go([cell("seed=5"), cell("seed=5", "model=lenet")], on_error="stop")
    assert [*stopped.values()] == ["missing", "failed"]


def test_the_end_of_a_terminal_stops_as_sigterm_does(place, capfd):
    cells = [cell("seed=0", hook("Hang", process=os.getpid())), cell("seed=1", hook("Hang", process=os.getpid()))]
    outcome = go(cells, jobs=1)
    assert statuses(outcome, cells) == ["stopped", "missing"]
    assert (outcome.signal, outcome.status) == ("SIGHUP", 129)
    assert (cells[0].folder / "last.pt").exists()
    out, err = capfd.readouterr()
    assert "stopping after the present step, with the state saved" in out
    assert "stopped by SIGHUP: 0 of 2 runs are done; the same command goes on from here" in err
