"""A step with every loss over one with cross-entropy, and steps with SAF and MESA over plain ones."""

from dataclasses import replace
from itertools import islice

import torch

from runner.command.listing import conf_dir, options
from scripts.bench import compare, report
from scripts.bench.cases import LENET, RESNET, Case, Steps, now

TITLE = "The cost of the losses and of the trajectory losses"
ABOUT = """\
Steps of LeNet (gather, forward, backward, update, what the loss remembers) with every loss, with its defaults, over
steps with loss=ce. Images and network are the same; losses for several labels and for regression have labels of their
kind and, for regression, one output, and losses for two classes are compared with ce on two. Losses for bags have bags
of one sample, which is the same arithmetic.

SAF and MESA are measured in steps of an epoch after their start (start=0, from the second epoch on); evaluation, which
would be the same in both arms, is not in the time. MESA needs the outputs of an average of the weights, so that no
implementation is below `forward`: plain steps, each with one more forward pass, without a gradient. What SAM costs is
in sam.md."""
PACKAGES = ()
WHERE = report.TOGETHER
BINARY = ("anyloss", "ensloss")  # losses for two classes
COMMON = ("optim.lr=0.001",)  # labels are random: with the default some losses leave the range of fp32
PART = 10  # losses with one control
EPOCHS = {replace(LENET, train=256, test=64): 16, replace(RESNET, train=64, test=64): 4}  # four epochs a measurement
TERMS = {"saf": ("hook=saf", "hook.saf.start=0"), "mesa": ("hook=mesa", "hook.mesa.start=0")}


class Forward(Steps):
    """Steps with one more forward pass over the batch."""

    def __call__(self) -> float:
        begin = now(self.device)
        for batch in islice(self.batches, self.steps):
            self.trainer.model.eval()
            with torch.no_grad():
                self.trainer.outputs(batch.x)
            self.trainer.model.train()
            self.trainer.step(batch)
        return now(self.device) - begin


def names() -> list[str]:
    """Every loss but ce."""
    return [name for name in options("loss", [conf_dir()]) if name != "ce"]


def measure(
    threads: int = 1,
    case: Case = LENET,
    steps: int = 12,
    losses: list[str] | None = None,
    epochs: dict[Case, int] = EPOCHS,
    rounds: tuple = (5, 12),
) -> compare.Found:
    rows, notes = [], []

    def add(where: Case, count: int, base: str, others: dict[str, tuple], most: dict[str, float]) -> None:
        arms = {base: (Steps, where, count, "cpu", COMMON), **others}
        found = compare.several(where, arms, most, rounds, count, threads)
        rows.extend(found[0]), notes.extend(found[1])

    losses = names() if losses is None else losses
    several = [name for name in losses if name not in BINARY]
    parts = [(case, several[start : start + PART]) for start in range(0, len(several), PART)]
    if binary := [name for name in losses if name in BINARY]:
        parts.append((replace(case, name=f"{case.name}, two classes", classes=2), binary))
    for where, part in parts:
        arms = {name: (Steps, where, steps, "cpu", (*COMMON, f"loss={name}")) for name in part}
        add(where, steps, "ce", arms, dict.fromkeys(part, 1.15))
    for where, count in epochs.items():
        arms = {name: (Steps, where, count, "cpu", (*COMMON, *words)) for name, words in TERMS.items()}
        add(
            where, count, "sgd", {**arms, "forward": (Forward, where, count, "cpu", COMMON)}, dict.fromkeys(TERMS, 1.25)
        )
    return rows, notes
