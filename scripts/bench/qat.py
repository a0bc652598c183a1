"""A step of training with quantization over one in full precision, and AdaRound's time."""

import shutil
import statistics
from dataclasses import replace
from pathlib import Path

import torch

from runner.command.build import build as make
from scripts.bench import compare
from scripts.bench.cases import LENET, RESNET, Case, Steps, build, now
from scripts.bench.rounds import once

TITLE = "The cost of quantization"
ABOUT = """\
Steps with quantization=lsq and quantization=dorefa, both with 4 bits for weights and inputs, over steps in full
precision, in eager mode and, all of them, with train.compile=true, after compilation. AdaRound is timed with its
defaults on random pixels, from the trained network to the rounded one, each time in a new process."""
PACKAGES = ()
CASES = {RESNET: 1}  # steps in a measurement
WORDS = {"lsq": ("quantization=lsq",), "dorefa": ("quantization=dorefa",)}
MINUTE = 60.0


class Rounding:
    """AdaRound of a network."""

    def __init__(self, case: Case, overrides: tuple[str, ...] = ()):
        self.run, config = build(case, "quantization=adaround", *overrides, device="cpu", folder=Path("unused"))
        self.transform = make(config["quantization"], "quantization")
        data, size = self.run.dataset.train, self.transform.calibration
        self.batch = next(iter(self.run.loader.evaluate(data.select(torch.arange(size)), size)))

    def __call__(self) -> float:
        """Seconds."""
        begin = now("cpu")
        self.transform.convert(self.run.model, self.batch)
        return now("cpu") - begin


def measure(
    threads: int = 1, cases: dict = CASES, rounds: tuple = (3, 5), rounding: tuple = (LENET, (), 3, 2)
) -> compare.Found:
    """rounding : the case, overrides, how many times, and with how many threads."""
    rows, notes = [], []
    modes = {"": ((), 2.0), ", compiled": (("train.compile=true",), 1.5)}
    if not (shutil.which("g++") or shutil.which("clang++")):
        del modes[", compiled"]
        notes.append("Not measured: steps with train.compile, which needs a C++ compiler.")
    for case, count in cases.items():
        for mode, (common, most) in modes.items():
            where = replace(case, name=f"{case.name}{mode}")
            arms = {"full precision": (Steps, where, count, "cpu", common)}
            arms |= {name: (Steps, where, count, "cpu", (*common, *own)) for name, own in WORDS.items()}
            found = compare.several(where, arms, dict.fromkeys(WORDS, most), rounds, count, threads)
            rows, notes = rows + found[0], notes + found[1]
    case, words, times, several = rounding
    seconds = [once(Rounding, case, words, threads=several) for _ in range(times)]
    middle = statistics.median(seconds)
    notes.append(
        f"adaround of {case.name}, {several} threads: {middle:.1f} s, median of {times}, range {min(seconds):.1f} to "
        f"{max(seconds):.1f}; at most {MINUTE:g} s: {'met' if middle <= MINUTE else 'missed'}"
    )
    return rows, notes
