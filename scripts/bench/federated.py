"""Clients per second: side by side where the probe says so, one after another, and Flower's simulation."""

import json
import os
import statistics
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np

from runner.federated.partition import Partition
from scripts.bench import compare
from scripts.bench.cases import LENET, MNIST, Case, build, now
from scripts.bench.rounds import CONTROL, KEEP, Ratio, Row, Target, medians, take_turns

TITLE = "A round of a federation"
ABOUT = """\
100 clients of 40 to 160 samples, all of them in every round, two local epochs of plain SGD in batches of 32, random
pixels in memory; no evaluation. `auto` is federated.chunk=auto, its probe apart; `alone` is federated.chunk=1; both
have the cores that --threads says. Flower is its own simulation, with Ray, on all cores, its first round left out; it
is measured after the others, by the python of FLOWER_PYTHON, as its dependencies and ours exclude each other. Above
1, the first of the two is faster."""
PACKAGES = ()
CLIENTS, BATCH, EPOCHS, LR = 100, 32, 2, 0.05
SAMPLES = 100 * CLIENTS
CASES = {
    "mlp 64": Case("mlp 64-64-10", "mlp", (1, 8, 8), SAMPLES, 10, BATCH),
    "mlp 784": Case("mlp 784-128-10", "mlp", MNIST, SAMPLES, 10, BATCH),
    "lenet": Case("lenet", "lenet", LENET.shape, SAMPLES, 10, BATCH),
}
WORDS = {"mlp 64": ("model.hidden=[64]",), "mlp 784": ("model.hidden=[128]",)}
TARGETS = {"mlp 64": (1.5, 5.0), "mlp 784": (0.95, 5.0), "lenet": (0.95, 1.8)}  # over alone, over Flower
ROUNDS = (3, 2)


def sizes(clients: int, samples: int) -> list[int]:
    """Samples of every client: from 0.4 to 1.6 of the mean."""
    found = np.round(np.linspace(0.4, 1.6, clients) * samples / clients).astype(int)
    found[0] += samples - found.sum()
    return found.tolist()


class Round:
    """Rounds of our own federation."""

    def __init__(self, name: str, chunk: str, clients: int = CLIENTS, device: str = "cpu"):
        case = CASES[name]
        words = ("federated=fedavg", f"federated.clients={clients}", f"federated.local_epochs={EPOCHS}")
        words += ("federated.rounds=1000", f"federated.chunk={chunk}", "schedule=constant", f"optim.lr={LR}")
        words += ("optim.momentum=0", "optim.weight_decay=0", *WORDS.get(name, ()))
        dealt = Partition("iid", np.repeat(np.arange(clients), sizes(clients, case.train)), clients, {})
        self.device = device
        with patch("runner.federated.fedavg.make", lambda *_, **__: dealt):
            self.run, _ = build(case, *words, device=device, folder=Path("unused"))
        self.algorithm = self.run.hooks.named["federated"]
        self.run.weights.copy_(self.algorithm.weights.data)

    def __call__(self) -> float:
        """Seconds of a round."""
        begin = now(self.device)
        for _ in self.algorithm.one_round(self.run, self.run.count):
            pass
        return now(self.device) - begin


def flower(python: str, name: str, rounds: int, clients: int = CLIENTS) -> list[float]:
    """Seconds of Flower's rounds after the first, by another environment's python."""
    case = CASES[name]
    work = {"name": name, "shape": case.shape, "sizes": sizes(clients, case.train), "batch": BATCH, "epochs": EPOCHS}
    script = "import flower, json, sys; print(json.dumps(flower.main(sys.argv[1], int(sys.argv[2]))))"
    argv = [python, "-c", script, json.dumps(work | {"lr": LR}), str(rounds + 1)]
    with TemporaryDirectory() as place:
        environment = {**os.environ, **KEEP, "OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0", "FLWR_HOME": place}
        environment["PYTHONPATH"] = str(Path(__file__).parent)
        done = subprocess.run(argv, capture_output=True, text=True, env=environment, cwd=place)
    if done.returncode:
        raise RuntimeError(f"Flower failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])[1:]


def measure(threads: int = 1, rounds: tuple = ROUNDS, device: str = "cpu", clients: int = CLIENTS) -> compare.Found:
    rows, notes = [], []
    python = os.environ.get("FLOWER_PYTHON")
    for name, case in CASES.items():
        over_alone, over_flower = TARGETS[name]
        arms = {"alone": (Round, name, "1", clients, device), "auto": (Round, name, "auto", clients, device)}
        seconds = take_turns(arms, *rounds, threads)
        control = Ratio.of(seconds[CONTROL], seconds["alone"])
        ratio = Ratio.of(seconds["alone"], seconds["auto"])
        rows.append(Row(f"{case.name}: auto over alone", ratio, control, Target(over_alone, at_least=True)))
        pace = {arm: clients / statistics.median(values) for arm, values in seconds.items()}
        if python:
            found = flower(python, name, rounds[0], clients)
            ratio = Ratio.of(found, [statistics.median(seconds["auto"])] * len(found))
            rows.append(Row(f"{case.name}: auto over Flower", ratio, control, Target(over_flower, at_least=True)))
            pace["Flower"] = clients / statistics.median(found)
        for row in rows[len(rows) - 1 - bool(python) :]:
            print(row.cells(), flush=True)
        shown = ", ".join(f"{arm} {value:,.0f}" for arm, value in pace.items())
        notes.append(f"{case.name}: clients per second: {shown}; {medians(seconds, 'round')}")
    if not python:
        notes.append(
            "FLOWER_PYTHON does not name the python of an environment with torch and flwr[simulation]: not compared"
        )
    return rows, notes
