"""Small sweeps of hooks that kill, sleep and look, for the tests of the pool."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from runner.command.compose import compose
from runner.command.config import Sweep
from runner.core import checkpoint
from runner.sweep import pool
from runner.sweep.cells import Cell
from runner.sweep.outcome import Outcome
from runner.sweep.tasks import Task
from tests.tiny import ROOT, SMALL

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


def start(*words, cwd):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "runner", *words], cwd=cwd, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def sweep(**settings) -> Sweep:
    return Sweep(**settings)


class Silent:
    """A worker that does nothing, to see what it is told."""

    def __init__(self):
        self.given, self.dismissed, self.log = [], None, Path("log")

    def give(self, task, pack):
        self.given.append(task)
        self.task, self.open, self.apart = task, dict(enumerate(task.cells)), ""

    def dismiss(self):
        self.task, self.open, self.dismissed = Task([]), {}, 0.0
