"""A client that breaks, a federation that is stopped and goes on, and what the command says."""

import json
import os
import signal

import numpy as np
import pytest
import torch

from runner.core import checkpoint
from runner.engine.run import run as run_config
from runner.engine.trainer import Trainer
from runner.record.folder import Stopped
from tests.federated.made import SKEWED, federation, rounds
from tests.tiny import ROOT, command, compose

# ---- a client that breaks, an interrupted run


@pytest.mark.parametrize("chunk", [1, 3])
def test_a_poisoned_client_is_refused(chunk):
    words = [*SKEWED, "federated=fedavg", "federated.rounds=2", f"federated.chunk={chunk}", "dataset.val=0"]
    run, algorithm = federation(*words)
    bad = int(algorithm.clients.rows[2][0])
    base = run.loader._train.base.clone().double()
    base[bad if run.loader._train.rows is None else run.loader._train.rows[bad]] = float("nan")
    run.loader._train.base = base
    others, healthy = federation(*words)
    healthy.plan = [([client for client in chosen if client != 2], []) for chosen, _ in healthy.plan]
    said = []
    run.tell = said.append
    rounds(run, algorithm)
    rounds(others, healthy)
    assert [line.partition(" is refused: ")[0] for line in said] == ["round 1: client 2", "round 2: client 2"]
    assert run.report["refused"] == 1 and run.report["clients"] == 5
    torch.testing.assert_close(run.weights.data, others.weights.data, rtol=0, atol=1e-12)
    torch.testing.assert_close(run.sums(), others.sums())


def test_an_average_of_weights_is_the_servers():
    """After every round a = d a + (1 - d) w with d = min(0.9, (1 + t) / (10 + t)): 0.1, 2 / 11."""
    words = [*SKEWED, "federated=fedavg", "federated.rounds=2", "hook=ema", "hook.ema.decay=0.9", "federated.chunk=4"]
    run, algorithm = federation(*words)
    expected = run.weights.clone()
    for d in (1 / 10, 2 / 11):
        rounds(run, algorithm, 1)
        expected = d * expected + (1 - d) * algorithm.weights.data
    torch.testing.assert_close(run.hooks.named["ema"].average, expected, rtol=0, atol=1e-12)
    with run.hooks.weights(run):
        torch.testing.assert_close(run.weights.data, expected, rtol=0, atol=1e-12)


def test_a_round_without_answers_changes_nothing():
    run, algorithm = federation(*SKEWED, "federated=fedavg", "federated.rounds=1")
    algorithm.plan = [([0, 3], [0, 3])]
    start, said = run.weights.clone(), []
    run.tell = said.append
    rounds(run, algorithm)
    assert torch.equal(run.weights.data, start)
    assert "no client answered" in said[0]


@pytest.mark.parametrize("name, chunk", [("scaffold", 1), ("fednova", 3), ("fedavg", 3)])
def test_resumed_in_the_middle_of_a_round_bit_for_bit(name, chunk, tmp_path, monkeypatch):
    words = [*SKEWED, f"federated={name}", "federated.rounds=3", f"federated.chunk={chunk}", "hook=clip"]
    words += ["federated.server.momentum=0.5"]
    whole = run_config(compose(*words, f"outputs_dir={tmp_path / 'whole'}"), [], say=lambda *_: None)
    config = compose(*words, f"outputs_dir={tmp_path / 'parts'}")

    step, left = Trainer.step, 0

    def counted(self, batch):
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch)

    monkeypatch.setattr(Trainer, "step", counted)
    stops = 0
    for after in (9, 11, 14):
        left = after
        try:
            run_config(config, [], say=lambda *_: None)
        except Stopped:
            stops += 1
    parts = run_config(config, [], say=lambda *_: None)
    assert stops >= 2
    assert {k: v for k, v in parts["last"].items() if k not in ("seconds", "images_per_second")} == {
        k: v for k, v in whole["last"].items() if k not in ("seconds", "images_per_second")
    }
    a, b = (checkpoint.load(next((tmp_path / kind).glob("runs/*/last.pt"))) for kind in ("whole", "parts"))
    for key, value in a["model"].items():
        assert torch.equal(value, b["model"][key])


# ---- the command


def test_the_runs_folder(tmp_path):
    words = ["federated=fedavg", "federated.rounds=2", "federated.partition=labels", "federated.participation=0.5"]
    result = command(*words, "device=cpu", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "2 rounds of 5 of 10 clients with" in result.stdout
    assert "round 2/2" in result.stdout and "worst client" in result.stdout
    (folder,) = [path for path in (tmp_path / "outputs/runs").iterdir() if path.is_dir() and path.name[0] != "."]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    size = 4 * json.loads((folder / "result.json").read_text())["parameters"]
    for line in lines:
        assert line["bytes_down"] == line["bytes_up"] == 5 * size
        assert 0 <= line["client_accuracy_worst"] <= line["client_accuracy_mean"] <= 1
        assert line["divergence"] > 0 and line["refused"] == 0
    assert (folder / "partition.png").stat().st_size > 5000
    owner = np.load(folder / "partition.npz")["owner"]
    assert len(owner) == 1294 and set(owner) == set(range(10))
    plan = json.loads((folder / "participation.json").read_text())["rounds"]
    assert [len(round_["clients"]) for round_ in plan] == [5, 5]


@pytest.mark.parametrize(
    "words, message",
    [
        (["federated.clients=2000"], "federated"),
        (["federated.partition=dirichelt"], "Did you mean 'dirichlet'?"),
        (["federated.partition=domain"], "domain"),
        (["federated.server.momentun=0.9"], "federated.server.momentun"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(words, message, tmp_path):
    result = command("federated=fedavg", *words, "device=cpu", cwd=tmp_path)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert message in line
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_says_in_one_line_that_clients_processes_are_killed(tmp_path):
    """As by a machine without memory: every process that is forked for clients kills itself. Nothing of the first
    client, which trains here, is lost."""
    (tmp_path / "fatal.py").write_text(
        "import multiprocessing, os, signal, time\n"
        "from runner.loss.ce import CrossEntropy\n"
        "class Fatal(CrossEntropy):\n"
        "    def forward(self, out, batch):\n"
        "        time.sleep(0.05)\n"
        "        if multiprocessing.parent_process() is not None:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super().forward(out, batch)\n"
    )
    (tmp_path / "conf" / "loss").mkdir(parents=True)
    (tmp_path / "conf" / "loss" / "fatal.yaml").write_text("# Fatal -- here\n_target_: fatal.Fatal\n")
    words = ["--config-dir", "conf", "loss=fatal", "federated=fedavg", "federated.clients=6", "federated.rounds=1"]
    words += ["federated.local_steps=4", "federated.chunk=1", "device=cpu"]
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    result = command(*words, cwd=tmp_path, env={"OMP_NUM_THREADS": "2", "PYTHONPATH": path})
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("runner: 2 processes that trained client") and "OMP_NUM_THREADS=1" in line
    assert sum(": once more" in told for told in result.stdout.splitlines()) >= 1
    again = command(*words, cwd=tmp_path, env={"OMP_NUM_THREADS": "1", "PYTHONPATH": path})
    assert again.returncode == 0, again.stderr
