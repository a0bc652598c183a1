"""What random crops and flips add to a LeNet step."""

from dataclasses import replace

from scripts.bench.cases import CIFAR, LENET, Steps
from scripts.bench.report import medians
from scripts.bench.rounds import CONTROL, Ratio, Row, Target, take_turns

TITLE = "The cost of augmentation"
ABOUT = """\
Steps of LeNet (gather, augment, normalise, forward, backward, update) with augment=crop_flip over those without, on
batches of 64 images of MNIST's and of CIFAR's shape. The ratio is the time of a step with augmentation over one without."""
PACKAGES = ()
CASES = (replace(LENET, name="lenet 1x28x28"), replace(LENET, name="lenet 3x32x32", shape=CIFAR))


def measure(threads: int = 1, cases: tuple = CASES, rounds: int = 40, steps: int = 20) -> tuple[list[Row], list[str]]:
    rows, notes = [], []
    for case in cases:
        arms = {"plain": (Steps, case, steps), "crop_flip": (Steps, case, steps, "cpu", ("augment=crop_flip",))}
        seconds = take_turns(arms, rounds, threads)
        control = Ratio.of(seconds[CONTROL], seconds["plain"])
        ratio = Ratio.of(seconds["crop_flip"], seconds["plain"])
        rows.append(Row(f"{case.name}, crop_flip over plain", ratio, control, Target(1.05, at_least=False)))
        notes.append(f"{case.name}: {rounds} rounds of {steps} steps; {medians(seconds, 'step', steps)}")
    return rows, notes
