"""Runs side by side against one run: the cost of a step of one replica."""

import resource
import sys
from pathlib import Path

from runner.engine.replicas import Replicas
from runner.federated.crew import twin
from scripts.bench import compare
from scripts.bench.cases import LENET, Case, Steps, build, now
from scripts.bench.rounds import CONTROL, Ratio, Row, Target, medians, once, take_turns

TITLE = "A step of one replica among many"
ABOUT = """\
The time of a step of K runs side by side, divided by K, and the same run's step alone; one thread, random pixels in
memory, SGD with momentum. The ratio is the time alone over the time per replica: above 1, a pack pays."""
PACKAGES = ()
DIGITS = Case("mlp 64-64-10", "mlp", (1, 8, 8), 1_280, 64)
SMALL = Case("mlp 64-16-10", "mlp", (1, 8, 8), 1_280, 64)
WIDTHS = {DIGITS: ("model.hidden=[64]",), SMALL: ("model.hidden=[16]",)}
CASES = {  # case -> {replicas: (steps of one measurement, target)}
    DIGITS: {8: (20, None), 32: (20, None)},
    SMALL: {1024: (3, 3.0)},
    LENET: {8: (2, None)},
}
ROUNDS = (3, 2)


class Together:
    """Steps of K replicas, with weights and batches of their own, one after another."""

    def __init__(self, case: Case, replicas: int, steps: int, device: str = "cpu", overrides: tuple[str, ...] = ()):
        words = ("train.steps=1000000000", "train.drop_last=true", *overrides)
        first, _ = build(case, *words, device=device, folder=Path("unused"))  # a thousand built anew take minutes
        members = [first, *(twin(first, first.hooks) for _ in range(replicas - 1))]
        self.run, self.steps, self.device = Replicas(members), steps, device
        self.run.model.train()
        self.batches = self.endless()

    def endless(self):
        epoch = 0
        while True:
            yield from self.run.loader.epoch(epoch)
            epoch += 1

    def __call__(self) -> float:
        """Seconds of `steps` steps of all of them."""
        begin = now(self.device)
        for _ in range(self.steps):
            self.run.step(next(self.batches))
        return now(self.device) - begin

    def close(self) -> None:
        self.batches.close()


class Memory(Together):
    """GiB that the process took at most."""

    def __call__(self) -> float:
        super().__call__()
        unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def measure(
    threads: int = 1, cases: dict = CASES, rounds: tuple = ROUNDS, device: str = "cpu", common: tuple[str, ...] = ()
) -> compare.Found:
    rows, notes = [], []
    for case, packs in cases.items():
        words = (*WIDTHS.get(case, ()), *common)
        for replicas, (steps, least) in packs.items():
            arms = {
                "alone": (Steps, case, 20 * steps, device, words),
                "together": (Together, case, replicas, steps, device, words),
            }
            seconds = take_turns(arms, *rounds, threads)
            for name in seconds:
                seconds[name] = [value / (steps * (replicas if name == "together" else 20)) for value in seconds[name]]
            control = Ratio.of(seconds[CONTROL], seconds["alone"])
            ratio = Ratio.of(seconds["alone"], seconds["together"])
            target = least and Target(least, at_least=True)
            rows.append(Row(f"{case.name}: {replicas} side by side", ratio, control, target))
            times = medians(seconds, "step of a replica")
            notes.append(f"{case.name}, batch {case.batch_size}, {replicas} replicas; {rounds[0]} rounds; {times}")
    if SMALL in cases:
        gib = once(Memory, SMALL, 1024, 3, device, WIDTHS[SMALL], threads=threads)
        notes.append(f"1,024 replicas of {SMALL.name}: the process took {gib:.2f} GiB at most (8 GB wanted)")
    return rows, notes
