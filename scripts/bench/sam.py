"""SAM's step over SGD's."""

from scripts.bench.cases import LENET, MLP, RESNET, Case, Steps
from scripts.bench.report import medians
from scripts.bench.rounds import CONTROL, Ratio, Row, Target, take_turns

TITLE = "The cost of SAM"
ABOUT = """\
Steps with optim=sam over steps with optim=sgd. Two passes over a batch are 2 times one; what is above is the
perturbation, what is below the parts of a step that there are once. The ratio is SAM's time over SGD's."""
PACKAGES = ()
CASES = {MLP: 100, LENET: 15, RESNET: 1}  # steps in a measurement


def measure(threads: int = 1, cases: dict[Case, int] = CASES, rounds: int = 25) -> tuple[list[Row], list[str]]:
    rows, notes = [], []
    for case, steps in cases.items():
        arms = {"sgd": (Steps, case, steps), "sam": (Steps, case, steps, "cpu", ("optim=sam",))}
        seconds = take_turns(arms, rounds, threads)
        control = Ratio.of(seconds[CONTROL], seconds["sgd"])
        rows.append(Row(f"{case.name}, sam over sgd", Ratio.of(seconds["sam"], seconds["sgd"]), control, Target(2.1, False)))
        notes.append(f"{case.name}: {rounds} rounds of {steps} steps; {medians(seconds, 'step', steps)}")
    return rows, notes
