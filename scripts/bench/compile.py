"""torch.compile over eager, on the CPU: only recorded, it is off by default."""

import shutil

from scripts.bench import compare
from scripts.bench.cases import LENET, MLP, RESNET

TITLE = "torch.compile on the CPU"
ABOUT = """\
Steps with train.compile=true, after compilation, and in eager mode. There is no target: train.compile is off by
default. The ratio is the time of a compiled step over that of an eager one: above 1, compilation slows a step down."""
PACKAGES = ()
CASES = {MLP: 40, LENET: 5, RESNET: 1}  # steps in a measurement


def measure(threads: int = 1, cases: dict = CASES, rounds: tuple = (3, 5)) -> compare.Found:
    if not (shutil.which("g++") or shutil.which("clang++")):
        return [], ["Not measured: there is no C++ compiler here, which torch.compile needs."]
    return compare.steps(cases, ("eager", "compiled"), ("train.compile=true",), rounds=rounds, threads=threads)
