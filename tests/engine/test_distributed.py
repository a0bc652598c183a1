"""Two processes under torchrun are one run: same weights to rounding as one process at the same global batch."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from runner.core import checkpoint
from tests.balance.made import words as objectives
from tests.conftest import ROOT
from tests.tiny import command

SMALL = ["dataset.subset=201", "train.batch_size=32", "train.epochs=2", "model.hidden=[16]", "augment=crop_flip"]


def torchrun(*words, cwd, port: int, background: bool = False):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    argv = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1",
            "--master-port", str(port), "-m", "runner", *words]  # fmt: skip
    if background:
        return subprocess.Popen(
            argv, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    return subprocess.run(argv, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def folder(cwd):
    (found,) = [path for path in (cwd / "outputs" / "runs").iterdir() if path.is_dir() and path.name[0] != "."]
    return found


@pytest.mark.parametrize(
    ("shared", "one"),
    [
        (["optim=sgd"], []),
        (["optim=sam", "hook=[ema,clip]"], []),  # one perturbation for the whole batch, over both processes
        (["optim=adamw", "train.accumulate=2"], ["train.accumulate=1"]),
        (["optim._target_=tests.engine.test_passes.ByLoss", "hook=clip"], []),  # an optimizer that uses the loss
        (["dataset.imbalance=3", "sampler=balanced"], []),  # samples that come again in an epoch
        ([*objectives("domains", "pcgrad"), "optim=sam"], []),  # of which one process has other numbers than the other
        ([*objectives("tasks", "upgrad"), "train.accumulate=2"], ["train.accumulate=1"]),
    ],
    ids=lambda words: " ".join(words),
)
def test_two_processes_equal_one(shared, one, tmp_path):
    """201 samples: 20 are held out, and the last global batch of 181 is 21, shared as 10 and 11."""
    (tmp_path / "two").mkdir()
    (tmp_path / "one").mkdir()
    two = torchrun(*SMALL, *shared, cwd=tmp_path / "two", port=free_port())
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("epoch 1/2") == 1  # one of them speaks
    alone = command(*SMALL, *shared, *one, cwd=tmp_path / "one")
    assert alone.returncode == 0, alone.stderr
    a, b = (checkpoint.load(folder(tmp_path / name) / "last.pt") for name in ("two", "one"))
    for key in a["model"]:
        torch.testing.assert_close(a["model"][key], b["model"][key], rtol=1e-4, atol=1e-5)
    for name in ("two", "one"):
        assert len((folder(tmp_path / name) / "metrics.jsonl").read_text().splitlines()) == 2
    x, y = (json.loads((folder(tmp_path / name) / "result.json").read_text())["last"] for name in ("two", "one"))
    assert x["test_nll"] == pytest.approx(y["test_nll"], rel=1e-3)
    assert x["train_loss"] == pytest.approx(y["train_loss"], rel=1e-3)


HOLES = ["dataset._target_=tests.engine.test_places.Tokens", "+dataset.holes=true", "+dataset.samples=45"]
HOLES += ["model=gpt", "model.width=8", "model.depth=1", "model.attention_heads=2"]
LOOKS = [f"~optim.{key}" for key in ("momentum", "weight_decay", "dampening", "nesterov")]
LOOKS += ["optim._target_=tests.engine.test_distributed.Parabola"]


@pytest.mark.parametrize(
    ("shared", "one"),
    [
        ([*HOLES, "train.accumulate=2", "optim=muon", "groups=no_decay"], ["train.accumulate=1"]),  # ragged targets
        ([*HOLES, "+dataset.sparse=true", "train.batch_size=6", "optim=sgd", "optim.lr=0.5"], []),  # of a process, none
        (["dataset=gaussians25", "dataset.size=45", "model=mlp_generator", "loss=wgan_gp", "optim=adam"], []),
        (["loss=diffusion", "model=mlp_time", "model.width=16", "gradient=forward"], []),
        (["model.hidden=[16]", "transform=magnitude", "transform.magnitude.every=1", *LOOKS], []),
    ],
    ids=["places", "no targets", "players", "draws and gradient", "maps and looks"],
)
def test_two_processes_equal_one_whatever_a_step_is(shared, one, tmp_path):
    words = ["dataset.subset=45", "dataset.val=0", "train.batch_size=10", "train.epochs=1", "device=cpu", *shared]
    for name in ("two", "one"):
        (tmp_path / name).mkdir()
    two = torchrun(*words, cwd=tmp_path / "two", port=free_port())
    assert two.returncode == 0, two.stderr
    alone = command(*words, *one, cwd=tmp_path / "one")
    assert alone.returncode == 0, alone.stderr
    a, b = (checkpoint.load(folder(tmp_path / name) / "last.pt") for name in ("two", "one"))
    for part in ("model", "loss"):
        for key, value in a[part].items():
            torch.testing.assert_close(value, b[part][key], rtol=1e-3, atol=1e-4)
    x, y = (json.loads((folder(tmp_path / name) / "result.json").read_text())["last"] for name in ("two", "one"))
    for key in (key for key in x if key.startswith("test_")):
        assert x[key] == pytest.approx(y[key], rel=1e-2, abs=1e-4), key


class Parabola(torch.optim.Optimizer):
    """To the minimum along the gradient, where the value there is smaller."""

    flat = looks = True

    def __init__(self, params, lr: float = 1.0):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure):
        with torch.enable_grad():
            loss = closure()
        (w,) = self.param_groups[0]["params"]
        (bent,) = closure.hvp([w.grad])
        far = self.param_groups[0]["lr"] * (w.grad @ w.grad / (w.grad @ bent).clamp(min=1e-3)).clamp(max=1.0)
        w.sub_(far * w.grad)
        if closure.value() > loss:
            w.add_(far * w.grad / 2)
        return loss


def test_per_device_perturbation_is_exact_where_the_batches_divide(tmp_path):
    words = [*SMALL, "optim=sam", "sharpness.m=16", "train.drop_last=true"]
    for name in ("two", "one"):
        (tmp_path / name).mkdir()
    two = torchrun(*words, cwd=tmp_path / "two", port=free_port())
    assert two.returncode == 0, two.stderr
    assert command(*words, cwd=tmp_path / "one").returncode == 0
    a, b = (checkpoint.load(folder(tmp_path / name) / "last.pt") for name in ("two", "one"))
    for key in a["model"]:
        torch.testing.assert_close(a["model"][key], b["model"][key], rtol=1e-4, atol=1e-5)


def test_a_stop_reaches_both_and_the_run_goes_on(tmp_path):
    words = [*SMALL, "train.epochs=300"]
    process = torchrun(*words, cwd=tmp_path, port=free_port(), background=True)
    for _ in range(4800):
        if any(path.read_text().count("\n") > 2 for path in (tmp_path / "outputs" / "runs").glob("*/metrics.jsonl")):
            break
        time.sleep(0.05)
    else:
        raise AssertionError("the run did not get there within four minutes")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=90)
    state = checkpoint.load(folder(tmp_path) / "last.pt")
    assert 0 < state["count"] < 300 * 6
    assert len(state["random"]) == 2
    rest = torchrun(*words, f"train.epochs={300}", cwd=tmp_path, port=free_port())
    assert rest.returncode == 0, rest.stderr
    assert re.search(r"resumed at step \d+", rest.stdout)


def test_a_mistake_is_said_once(tmp_path):
    result = torchrun("loss=pol", cwd=tmp_path, port=free_port())
    assert result.returncode != 0
    assert result.stderr.count("no loss named 'pol'") == 1
