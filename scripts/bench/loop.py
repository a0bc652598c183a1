"""Our training loop against a hand-written one of the same work, and against Lightning."""

import importlib.util

from scripts.bench.byhand import ByHand
from scripts.bench.cases import LENET, MLP, RESNET, Case, Fit
from scripts.bench.lightning import Lightning
from scripts.bench.report import medians
from scripts.bench.rounds import CONTROL, Ratio, Row, Target, take_turns

TITLE = "Steps per second of the training loop"
ABOUT = """\
`trainer.fit` over whole epochs, with a real run folder: evaluation of the test split, a line in metrics.jsonl and
checkpoints (last and best, flushed to disk) at the end of every epoch. The hand-written loop (byhand.py) does the same
work with torch.optim.SGD, torch.save and one JSON line, without flushing to disk. Lightning is bare: the same steps and the
same evaluation, but no logger and no checkpoints. The data are random pixels of MNIST's or CIFAR's shape, in memory. The
ratio is our steps per second over the other's."""
PACKAGES = ("lightning",)
CASES = {MLP: (0.90, 1.3), LENET: (0.95, None), RESNET: (0.98, None)}  # targets against the two others


def measure(threads: int = 1, cases: dict = CASES, rounds: int = 20) -> tuple[list[Row], list[str]]:
    rows, notes = [], []
    for case, (by_hand, by_lightning) in cases.items():
        arms = {"ours": (Fit, case), "by hand": (ByHand, case)}
        if by_lightning is not None:
            if importlib.util.find_spec("lightning"):
                arms["lightning"] = (Lightning, case)
            else:
                notes.append("Lightning is not installed here, so nothing is said about it: `pip install lightning`.")
        seconds = take_turns(arms, rounds, threads)
        rows += compare(case, seconds, {"by hand": by_hand, "lightning": by_lightning})
        notes.append(f"{case}; {rounds} rounds; {medians(seconds, 'step', case.steps)}")
    return rows, notes


def compare(case: Case, seconds: dict[str, list[float]], targets: dict[str, float | None]) -> list[Row]:
    control = Ratio.of(seconds[CONTROL], seconds["ours"])
    rows = []
    for other in [name for name in seconds if name not in ("ours", CONTROL)]:
        target = targets.get(other)
        ratio = Ratio.of(seconds[other], seconds["ours"])
        rows.append(Row(f"{case.name}, over {other}", ratio, control, target and Target(target, at_least=True)))
    return rows
