"""The pool of warm workers: what it runs, what it survives, and that nothing of one run reaches the next."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from runner.__main__ import main
from runner.command.compose import compose
from runner.command.config import Sweep
from runner.core import checkpoint
from runner.engine.run import run
from runner.record.folder import Record
from runner.sweep import pack, pool, process
from runner.sweep.cells import Cell, distinct
from runner.sweep.outcome import Outcome
from runner.sweep.places import cores, leases, threads, visible
from runner.sweep.tasks import Task, tasks
from tests.tiny import ROOT, SMALL, command

HOOKS = """\
import json, os, signal, time
import numpy as np
import torch
from runner.hook import Hook


class Kill(Hook):
    '''Ends its process at the third step; with a mark only where the mark is not there yet.'''

    def __init__(self, mark: str | None = None, number: int = 9):
        self.mark, self.number, self.count = mark, number, 0

    def step(self, run):
        self.count += 1
        if self.count == 3 and not (self.mark and os.path.exists(self.mark)):
            if self.mark:
                open(self.mark, "w").close()
            os.kill(os.getpid(), self.number)


class Sleep(Hook):
    def __init__(self, seconds: float, mark: str):
        self.seconds, self.mark, self.count = seconds, mark, 0

    def step(self, run):
        self.count += 1
        if self.count > 2:  # two are for trial
            open(self.mark, "w").close()
            time.sleep(self.seconds)


class Say(Hook):
    def __init__(self, line: str):
        self.line = line

    def start(self, run):
        run.notices.append(self.line)


class Hang(Hook):
    '''Ends the terminal of a process at the third step.'''

    def __init__(self, process: int):
        self.process = process

    def step(self, run):
        if run.count == 2:
            os.kill(self.process, signal.SIGHUP)
            time.sleep(1)


class Loud(Hook):
    def step(self, run):
        os.write(1, f"from the depths of {os.environ.get('CUDA_VISIBLE_DEVICES')}\\n".encode())


class Spoil(Hook):
    '''Changes what is global at the last step.'''

    def step(self, run):
        if run.count + 1 < run.steps:
            return
        torch.set_default_dtype(torch.float64)
        torch.set_flush_denormal(True)
        torch.set_float32_matmul_precision("medium")
        torch.backends.mkldnn.enabled = False
        torch.backends.cudnn.allow_tf32 = False
        torch.set_anomaly_enabled(True)
        torch.set_autocast_enabled("cpu", True)
        torch.set_autocast_dtype("cpu", torch.float16)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.set_num_threads(3)
        torch.set_default_device("meta")
        np.seterr(all="raise")
        os.environ["SPOILT"] = "1"
        os.environ.pop("HOME", None)
        os.chdir("/")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise RuntimeError("spoilt")


class Look(Hook):
    '''Notes what is global at the first step.'''

    def step(self, run):
        if run.count:
            return
        x = torch.tensor([1e-40]) * 1
        seen = {
            "dtype": str(torch.get_default_dtype()),
            "denormal": x.item(),
            "matmul": torch.get_float32_matmul_precision(),
            "mkldnn": torch.backends.mkldnn.enabled,
            "tf32": torch.backends.cudnn.allow_tf32,
            "anomaly": torch.is_anomaly_enabled(),
            "autocast": [torch.is_autocast_enabled("cpu"), str(torch.get_autocast_dtype("cpu"))],
            "strict": [torch.are_deterministic_algorithms_enabled(),
                       torch.is_deterministic_algorithms_warn_only_enabled()],
            "threads": torch.get_num_threads(),
            "device": str(torch.get_default_device()),
            "numpy": np.geterr(),
            "environment": {key: os.environ.get(key) for key in ("SPOILT", "HOME", "OMP_NUM_THREADS")},
            "folder": os.getcwd(),
            "grad": torch.is_grad_enabled(),
        }
        (run.folder / "seen.json").write_text(json.dumps(seen))
"""


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """An empty working directory, from which workers can import the hooks above; one thread for each of them."""
    (tmp_path / "pool_hooks.py").write_text(HOOKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(process, "cool", lambda: None)  # the next test's workers come from the same server
    return tmp_path


@pytest.fixture(scope="module", autouse=True)
def _server():
    yield
    process.cool()


def cell(*overrides: str) -> Cell:
    small = [
        word for word in SMALL if not word.startswith("model.") or not any(w.startswith("model=") for w in overrides)
    ]
    return Cell(compose("device=cpu", *small, *overrides), list(overrides))


def hook(kind: str, **arguments) -> str:
    """An override that adds one of the hooks above."""
    node = {"_target_": f"pool_hooks.{kind}", **{key: json.dumps(value) for key, value in arguments.items()}}
    return f"++hook.{kind.lower()}={{{','.join(f'{key}:{value}' for key, value in node.items())}}}"


def go(cells: list[Cell], **settings) -> Outcome:
    return pool.run(cells, Sweep(**{"jobs": 2, "pack": "off", **settings}), Path("sweep"))


def statuses(outcome: Outcome, cells: list[Cell]) -> list[str]:
    return [outcome[each.folder] for each in cells]


def records(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in lines]


def assert_same(a: Path, b: Path) -> None:
    """Two folders hold the same run bit for bit, the clock apart."""
    assert records(a) == records(b)
    one, two = (checkpoint.load(path / "last.pt") for path in (a, b))
    for key in ("model", "count", "best", "hooks", "optimizer", "random"):
        flat = [torch.utils._pytree.tree_leaves(state[key]) for state in (one, two)]
        assert len(flat[0]) == len(flat[1])
        for x, y in zip(*flat, strict=True):
            assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y, key
    results = [json.loads((path / "result.json").read_text()) for path in (a, b)]
    for result in results:
        del result["seconds"], result["finished"]
        for line in (result["last"], result["best_val"], result["best_test"]):
            line.pop("seconds"), line.pop("images_per_second")
    assert results[0] == results[1]


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


def start(*words, cwd):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "runner", *words], cwd=cwd, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


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


# ---- how many, where, and which together


def sweep(**settings) -> Sweep:
    return Sweep(**settings)


def test_workers_are_dealt_to_the_gpus_in_turn():
    assert leases(["auto"], sweep(), ["0", "1"], 8) == ["0", "1"]
    assert leases(["cuda"], sweep(jobs_per_gpu=2), ["0", "1"], 8) == ["0", "1", "0", "1"]
    assert leases(["auto", "auto"], sweep(jobs=3), ["GPU-5a", "GPU-6b"], 8) == ["GPU-5a", "GPU-6b", "GPU-5a"]
    assert leases(["auto"], sweep(), [], 4) == [None] * 4
    assert leases(["cpu"], sweep(), ["0"], 4) == [None] * 4
    assert leases(["cpu"], sweep(jobs=3), ["0"], 4) == [None] * 3
    assert leases(["cuda:1"], sweep(jobs_per_gpu=2), ["0", "1"], 8) == [None] * 2


def test_a_gpu_is_named_as_the_environment_names_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5a, GPU-6b,7")  # the third one is not there
    assert visible() == ["GPU-5a", "GPU-6b"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible() == []


def test_workers_share_the_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [threads(8, workers) for workers in (1, 2, 3, 8, 20)] == [8, 4, 2, 1, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "2,1")
    assert [threads(8, workers) for workers in (1, 2, 8)] == [2, 2, 1]
    assert 1 <= cores() <= os.cpu_count()


def test_a_lease_reaches_the_worker(place, monkeypatch):
    """No GPU is needed to see what the worker would have seen."""
    monkeypatch.setattr(pool, "visible", lambda: ["GPU-5a"])
    each = cell(hook("Loud"), "device=auto")
    assert statuses(go([each], jobs=1), [each]) == ["done"]
    assert "the depths of GPU-5a" in (place / "sweep" / "worker-1.log").read_text()


def fake_groups(monkeypatch, *sizes: int):
    from runner.sweep import pack

    def groups(cells):
        found, start = [], 0
        for size in sizes:
            found.append(cells[start : start + size])
            start += size
        return found

    monkeypatch.setattr(pack, "groups", groups)


def test_a_group_is_cut_for_all_workers(monkeypatch):
    fake_groups(monkeypatch, 1, 7, 2)
    cells = list(range(10))

    def cut(workers=3, **settings):
        return [(len(task.cells), task.group) for task in tasks(cells, pack.groups(cells), sweep(**settings), workers)]

    assert cut() == [(3, 1), (3, 1), (1, None), (1, None), (1, None), (1, None)]
    assert cut(workers=1) == [(7, 1), (2, 2), (1, None)]
    assert cut(pack=4) == [(4, 1), (3, 1), (2, 2), (1, None)]
    assert cut(pack="off") == [(1, None)] * 10


class Silent:
    """A worker that does nothing, to see what it is told."""

    def __init__(self):
        self.given, self.dismissed, self.log = [], None, Path("log")

    def give(self, task, pack):
        self.given.append(task)
        self.task, self.open, self.apart = task, dict(enumerate(task.cells)), ""

    def dismiss(self):
        self.task, self.open, self.dismissed = Task([]), {}, 0.0


def test_what_cannot_be_packed_is_run_one_by_one_and_said_once(place, monkeypatch, capfd):
    fake_groups(monkeypatch, 4, 2)
    cells = [cell(f"seed={seed}") for seed in range(6)]
    outcome = Outcome()
    outcome.update((each.folder, "missing") for each in cells)
    host = pool._Pool(cells, sweep(jobs=2, pack=2), Path("sweep"), outcome)
    first, second = Silent(), Silent()
    for worker in (first, second):
        host._next(worker)
    assert [task.cells for task in (*first.given, *second.given)] == [cells[:2], cells[2:4]]
    host._message(first, "apart", "dropout draws from one generator")
    host._message(first, "idle")
    assert first.given[-1].cells == cells[4:]  # the other group may still be packed
    assert [task.cells for task in host.queue] == [[cells[0]], [cells[1]]]
    host._message(second, "ended", 0, "done", "")
    host._message(second, "apart", "dropout draws from one generator")
    host._message(second, "idle")
    assert second.given[-1].cells == [cells[0]]
    assert [task.cells for task in host.queue] == [[cells[1]], [cells[3]]]  # cells[2] was done
    assert capfd.readouterr().out.count("dropout draws from one generator") == 1
    assert host.queue[0].group is None


def test_packs_are_trained(place, capfd):
    cells = [cell(f"seed={seed}", "model.hidden=[4]") for seed in range(4)]
    assert set(go(cells, pack=2).values()) == {"done"}
    assert capfd.readouterr().out.count("] done ") == 4


def test_distinct_keeps_the_first():
    cells = [cell("seed=0"), cell("seed=1"), cell("seed=0", "device=auto")]
    assert distinct(cells) == cells[:2]
