"""SAM's step over SGD's."""

from scripts.bench import compare
from scripts.bench.cases import LENET, MLP, RESNET

TITLE = "The cost of SAM"
ABOUT = """\
Steps with optim=sam and with optim=sgd. Two passes over a batch are 2 times one; what is above is the perturbation,
what is below the parts of a step that there are once. The ratio is the time of SAM's step over that of SGD's."""
PACKAGES = ()
CASES = {MLP: 40, LENET: 5, RESNET: 1}  # steps in a measurement


def measure(threads: int = 1, cases: dict = CASES, rounds: tuple = (5, 4)) -> compare.Found:
    return compare.steps(cases, ("sgd", "sam"), ("optim=sam",), rounds=rounds, most=2.1, threads=threads)
