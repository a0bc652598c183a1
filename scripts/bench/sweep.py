"""Whole sweeps: the pool with and without packs, Hydra's basic launcher, and one process per run."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from runner.sweep.places import cores
from scripts.bench.compare import Found
from scripts.bench.rounds import CONTROL, Ratio, Row, Target, by_arm, medians

TITLE = "Whole sweeps"
ABOUT = """\
The time of whole commands, from the start of the process to its end, table included; every arm trains the same cells
from nothing in a folder of its own. `pool`: the default launcher, one worker with one thread for each core, packing
where its own measurement says so. `pool, no packs`: sweep.pack=off. `basic`: Hydra's basic launcher, cell after cell in
one process with all cores' threads. `processes`: `python -m runner` once per cell, as many at a time as there are
cores, one thread each. The ratio is the other's time over that of the pool. The control is the pool a second time."""
PACKAGES = ("hydra-core",)
ROOT = Path(__file__).parent.parent.parent
ROUNDS = {"digits": 3, "short": 3, "mnist": 2}

DIGITS = ("seed=range(0,32)",)
SHORT = ("seed=range(0,16)", "train.epochs=3")
MNIST = ("seed=range(0,8)", "model=lenet", "dataset=mnist", "train.epochs=1")


def command(words: tuple[str, ...], folder: Path, threads: int | None = None) -> float:
    """Seconds of `python -m runner words`; `threads` None: what torch takes of its own accord."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "runner", "device=cpu", *words],
        cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    seconds = time.perf_counter() - begin
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)} failed:\n{done.stdout}{done.stderr}")
    return seconds


def sweep(*words: str) -> Callable[[Path], float]:
    return lambda folder: command(("-m", *words), folder)


def processes(*words: str) -> Callable[[Path], float]:
    """One process per seed."""
    seeds, *rest = words
    low, high = seeds.removeprefix("seed=range(").removesuffix(")").split(",")

    def run(folder: Path) -> float:
        begin = time.perf_counter()
        with ThreadPoolExecutor(cores()) as pool:
            list(pool.map(lambda seed: command((f"seed={seed}", *rest), folder, 1), range(int(low), int(high))))
        return time.perf_counter() - begin

    return run


def in_rounds(arms: dict[str, Callable[[Path], float]], rounds: int) -> dict[str, list[float]]:
    """Every arm once in every round, in random order, each time in a new folder. The first is also the control."""
    order, found = random.Random(0), []
    every = {**arms, CONTROL: next(iter(arms.values()))}
    for _ in range(rounds):
        seconds = {}
        for name in order.sample(list(every), len(every)):
            with TemporaryDirectory() as folder:
                seconds[name] = every[name](Path(folder))
        found.append({name: seconds[name] for name in every})
    return by_arm(found)


def compare(what: str, arms: dict[str, Callable], targets: dict[tuple[str, str], float | None], rounds: int) -> Found:
    """targets : (slower, faster) -> the least ratio of their times."""
    seconds = in_rounds(arms, rounds)
    control = Ratio.of(seconds[CONTROL], seconds[next(iter(arms))])
    rows = [
        Row(f"{what}: {faster} over {slower}", Ratio.of(seconds[slower], seconds[faster]), control,
            None if least is None else Target(least, at_least=True))
        for (slower, faster), least in targets.items()
    ]  # fmt: skip
    return rows, [f"{what}; {rounds} rounds; {medians(seconds, 'sweep')}"]


def measure(threads: int = 1, rounds: dict[str, int] = ROUNDS) -> Found:
    parts = [
        compare(
            "32 seeds, mlp on digits, 20 epochs",
            {"pool": sweep(*DIGITS), "pool, no packs": sweep(*DIGITS, "sweep.pack=off"),
             "basic": sweep(*DIGITS, "hydra/launcher=basic")},
            {("basic", "pool"): 2.5, ("pool, no packs", "pool"): 0.95},
            rounds["digits"],
        ),
        compare(
            "16 short runs, mlp on digits, 3 epochs",
            {"pool": sweep(*SHORT), "pool, no packs": sweep(*SHORT, "sweep.pack=off"), "processes": processes(*SHORT)},
            {("processes", "pool"): 10, ("processes", "pool, no packs"): 5},
            rounds["short"],
        ),
    ]  # fmt: skip
    if os.environ.get("RUNNER_DATA"):
        parts.append(
            compare(
                "8 seeds, lenet on mnist, 1 epoch",
                {"pool": sweep(*MNIST), "pool, no packs": sweep(*MNIST, "sweep.pack=off"),
                 "basic": sweep(*MNIST, "hydra/launcher=basic")},
                {("basic", "pool"): 1.25, ("pool, no packs", "pool"): 0.97},
                rounds["mnist"],
            )
        )  # fmt: skip
    else:
        parts.append(([], ["lenet on mnist was left out: RUNNER_DATA does not say where MNIST is"]))
    rows, notes = zip(*parts, strict=True)
    return [row for part in rows for row in part], [note for part in notes for note in part]
