"""Our steps as the command takes them, alone on the machine and beside one busy process per core."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from runner.sweep.places import cores
from scripts.bench.byhand import HandSteps
from scripts.bench.cases import CIFAR, LENET, MLP, Case, Steps
from scripts.bench.compare import Found
from scripts.bench.rounds import CONTROL, Ratio, Row, Target, medians, take_turns

TITLE = "Beside other work"
ABOUT = """\
Steps alone, over random pixels in memory. `default`: what a run takes by itself, train.threads=auto and
train.channels_last=auto, with the bounded spin that `runner` sets. `one thread`: the same with train.threads=1.
`before`: all cores' threads, channels first, and libgomp's own spin, as it was before there were these settings.
`plain script`: a hand-written step with torch.optim, started the plain way. Beside: one process per core that does
nothing but count. The ratio is the speed of the first over that of the second. Every arm may have all cores."""
PACKAGES = ()
PLAIN = {"GOMP_SPINCOUNT": "300000"}  # what libgomp takes where nothing is said
WIDE = Case("mlp 784-100-100-10", "mlp", MLP.shape, 25_600, 10, 128)
CNN = Case("cnn", "cnn", CIFAR, 1_024, 10)
# case: steps of a measurement; the model's words; the optimizer by hand, and ours; targets: over one thread beside,
# over before quiet, over the plain script beside
CASES = {
    WIDE: (100, ("model.hidden=[100,100]",), "Adam", (0.9, 1.0, 5.0)),
    LENET: (25, (), "SGD", (0.6, 0.95, None)),
    replace(LENET, name="lenet, batch 256", batch_size=256): (8, (), "SGD", (None, 0.95, None)),
    CNN: (3, (), "SGD", (None, 0.95, None)),
}
ROUNDS = (3, 5)


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that keep a core busy each."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    time.sleep(0.5)  # until they are at it
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def measure(threads: int = 1, cases: dict = CASES, rounds: tuple[int, int] = ROUNDS, count: int = 0) -> Found:
    count, rows, notes = count or cores(), [], []
    for case, (steps, model, optimizer, targets) in cases.items():
        words = (*model, f"optim={optimizer.lower()}")
        before = (*words, f"train.threads={count}", "train.channels_last=false")
        arms = {
            "default": (Steps, case, steps, "cpu", words),
            "one thread": (Steps, case, steps, "cpu", (*words, "train.threads=1")),
            "before": (Steps, case, steps, "cpu", before),
            "plain script": (HandSteps, case, steps, optimizer, model),
        }
        environments = {"before": PLAIN, "plain script": PLAIN}
        for where, beside in {"quiet": lambda: busy(0), "beside": lambda: busy(count)}.items():
            seconds = take_turns(arms, *rounds, count, environments, beside)
            control = Ratio.of(seconds[CONTROL], seconds["default"])
            least = {("one thread", "beside"): targets[0], ("before", "quiet"): targets[1]}
            least[("plain script", "beside")] = targets[2]
            for other in list(arms)[1:]:
                target = least.get((other, where))
                ratio = Ratio.of(seconds[other], seconds["default"])
                what = f"{case.name}, {where}: default over {other}"
                rows.append(Row(what, ratio, control, target and Target(target, at_least=True)))
                print(rows[-1].cells(), flush=True)
            notes.append(f"{case.name}, batch {case.batch_size}, {where}; {medians(seconds, 'step', steps)}")
    return rows, notes
