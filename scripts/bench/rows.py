"""A step with three objectives over one with one."""

from scripts.bench import compare
from scripts.bench.cases import LENET, MLP

TITLE = "The cost of a balance"
ABOUT = """\
Steps with balance=upgrad of three terms, the risk and two penalties, and the same steps without. There is one forward
pass and a backward pass for each objective; the small problem that a balance solves is in it too. The ratio is the time
of the step with the balance over that without."""
PACKAGES = ()
CASES = {MLP: 40, LENET: 5}  # steps in a measurement
PENALTIES = ("hook=[spectral_decoupling,logit_z]",)


def measure(threads: int = 1, cases: dict = CASES, rounds: tuple = (5, 4)) -> compare.Found:
    return compare.steps(
        cases,
        ("none", "upgrad"),
        ("balance=upgrad", "balance.of=terms"),
        rounds=rounds,
        threads=threads,
        common=PENALTIES,
    )
