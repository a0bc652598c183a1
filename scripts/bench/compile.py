"""torch.compile over eager, on the CPU: only recorded, it is off by default."""

import shutil

from scripts.bench.cases import LENET, MLP, RESNET, Case, Steps
from scripts.bench.report import medians
from scripts.bench.rounds import CONTROL, Ratio, Row, take_turns

TITLE = "torch.compile on the CPU"
ABOUT = """\
Steps with train.compile=true over steps in eager mode, after compilation. The ratio is compiled steps per second over eager ones:
below 1, compilation slows a step down."""
PACKAGES = ()
CASES = {MLP: 100, LENET: 15, RESNET: 1}  # steps in a measurement


def measure(threads: int = 1, cases: dict[Case, int] = CASES, rounds: int = 15) -> tuple[list[Row], list[str]]:
    if not (shutil.which("g++") or shutil.which("clang++")):
        return [], ["Not measured: there is no C++ compiler here, which torch.compile needs."]
    rows, notes = [], []
    for case, steps in cases.items():
        arms = {"eager": (Steps, case, steps), "compiled": (Steps, case, steps, "cpu", ("train.compile=true",))}
        seconds = take_turns(arms, rounds, threads)
        control = Ratio.of(seconds["eager"], seconds[CONTROL])
        rows.append(Row(f"{case.name}, compiled over eager", Ratio.of(seconds["eager"], seconds["compiled"]), control))
        notes.append(f"{case.name}: {rounds} rounds of {steps} steps; {medians(seconds, 'step', steps)}")
    return rows, notes
