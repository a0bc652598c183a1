"""From the start of the process to the end of the first training step."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from scripts.bench.compare import Found
from scripts.bench.rounds import CONTROL, Ratio, Row, Target, by_arm, in_turns, medians

TITLE = "Time to the first step"
ABOUT = """\
From the start of a process to the end of its first training step: `python -m runner` with all defaults (digits, mlp,
sgd), and a bare script that imports torch, makes the same network and takes one step of torch.optim.SGD on one batch of
random numbers, with no data set, no config and no run folder. Ours tells the time after `Trainer.step` (a hook of the
user's would be tried before the run begins, and tell the time of that). Both processes end right after their first
step, and their files are in the disk cache. The ratio is our time over the bare script's."""
PACKAGES = ()
ROOT = Path(__file__).parent.parent.parent

BARE = """\
import time
import torch
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
loss = torch.nn.functional.cross_entropy(model(torch.randn(64, 1, 8, 8)), torch.randint(10, (64,)))
loss.backward()
optimizer.step()
print(time.time(), flush=True)
"""
OURS = """\
import os
import sys
import time
from runner.__main__ import main
from runner.engine.trainer import Trainer
step = Trainer.step
def told(self, batch):
    step(self, batch)
    print(time.time(), flush=True)
    os._exit(0)
Trainer.step = told
sys.exit(main(sys.argv[1:]))
"""


def bare(folder: Path, threads: int) -> Callable[[], float]:
    (folder / "bare.py").write_text(BARE)
    return lambda: _seconds([sys.executable, "bare.py"], folder, threads)


def ours(folder: Path, threads: int, *words: str) -> Callable[[], float]:
    """`python -m runner *words` until its first step."""
    (folder / "ours.py").write_text(OURS)
    command = [sys.executable, "ours.py", "device=cpu", *words]
    return lambda: _seconds(command, folder, threads)


def _seconds(command: list[str], folder: Path, threads: int) -> float:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}
    begin = time.time()  # the clock that two processes share
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[1:])} failed:\n{done.stdout}{done.stderr}")
    return float(done.stdout.split()[-1]) - begin


def measure(threads: int = 1, rounds: tuple = (7, 1)) -> Found:
    with ExitStack() as stack:
        a, b, c = (Path(stack.enter_context(TemporaryDirectory())) for _ in range(3))
        arms = {"bare": bare(a, threads), "ours": ours(b, threads), CONTROL: bare(c, threads)}
        for start in arms.values():
            start()
        order = random.Random(0)
        seconds = by_arm([in_turns(arms, rounds[1], order) for _ in range(rounds[0])])
    control = Ratio.of(seconds[CONTROL], seconds["bare"])
    row = Row("first step, ours over bare", Ratio.of(seconds["ours"], seconds["bare"]), control, Target(1.3, False))
    return [row], [f"{rounds[0]} rounds of {rounds[1]} turns; {medians(seconds, 'start')}"]
