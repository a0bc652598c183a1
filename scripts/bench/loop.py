"""Our training loop against a hand-written one of the same work, and against Lightning."""

import importlib.util

from scripts.bench import compare
from scripts.bench.byhand import ByHand
from scripts.bench.cases import LENET, MLP, RESNET, Fit
from scripts.bench.lightning import Lightning

TITLE = "Steps per second of the training loop"
ABOUT = """\
`trainer.fit` over whole epochs, with a real run folder: evaluation of the test split, a line in metrics.jsonl and
checkpoints (last and best, flushed to disk) at the end of every epoch. The hand-written loop (byhand.py) does the same
work with torch.optim.SGD, torch.save and one JSON line, without flushing to disk. Lightning is bare: the same steps and
the same evaluation, but no logger and no checkpoints. The data are random pixels of MNIST's or CIFAR's shape, in
memory. The ratio is our steps per second over the other's, evaluation and saving counted in the time of both."""
PACKAGES = ("lightning",)
CASES = {MLP: (0.95, 1.3), LENET: (1.2, None), RESNET: (0.98, None)}  # targets: by hand, Lightning
ROUNDS = {MLP: (5, 3), LENET: (5, 2), RESNET: (5, 1)}  # and turns in each


def measure(threads: int = 1, cases: dict = CASES, rounds: dict = ROUNDS) -> compare.Found:
    rows, notes = [], []
    for case, (by_hand, by_lightning) in cases.items():
        arms = {"ours": (Fit, case), "by hand": (ByHand, case)}
        if by_lightning is not None:
            if importlib.util.find_spec("lightning"):
                arms["lightning"] = (Lightning, case)
            else:
                notes.append("Lightning is not installed here, so nothing is said about it: `pip install lightning`.")
        targets = {"by hand": by_hand, "lightning": by_lightning}
        more_rows, more_notes = compare.epochs(case, arms, targets, rounds[case], threads)
        rows, notes = rows + more_rows, notes + more_notes
    return rows, notes
