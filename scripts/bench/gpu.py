"""The same ratios on a CUDA device, and what exists only there: `python -m scripts.bench.gpu`.

Every part is a function of the device, so that a test can run it on the CPU.
"""

import argparse
import re
import sys
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from runner.core.batch import Batch
from scripts.bench import compare, report
from scripts.bench.byhand import ByHand
from scripts.bench.cases import CIFAR, LENET, MLP, RESNET, Case, Fit, Steps, build
from scripts.bench.compare import Found
from scripts.bench.rounds import once

TITLE = "Speed on a GPU"
ABOUT = """\
The loop against a hand-written one over whole epochs (evaluation, log and checkpoints included on both sides); SAM's
step over SGD's; a DataLoader that hands over one sample at a time against data that live on the device; crops and
flips; compilation; channels_last; the memory peak. bf16 where nothing else is said. The device is synchronised before
a clock is read."""
PACKAGES = ("triton",)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BF16 = ("train.precision=bf16",)

LOOPS = {
    MLP: 0.90,
    replace(LENET, train=60_000, test=10_000): 0.95,
    replace(RESNET, train=50_000, test=10_000, batch_size=128): 0.98,
}
RESNET128 = Case("resnet20", "resnet20", CIFAR, 12_800, 1_000, batch_size=128)
WRN128 = Case("wrn_16_8", "wrn_16_8", CIFAR, 12_800, 1_000, batch_size=128)
SMALL = {MLP: 400, LENET: 400, RESNET128: 60}  # steps in a measurement
LARGE = {RESNET128: 60, WRN128: 15}


class Streamed(Steps):
    """Our steps, fed by a DataLoader whose workers hand over one sample at a time."""

    def endless(self):
        train, device = self.trainer.dataset.train, self.trainer.device
        loader = DataLoader(
            Samples(train.x, train.y),
            batch_size=self.trainer.train.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=4,
            pin_memory=device.type == "cuda",
            persistent_workers=True,
        )
        for _ in count():
            for batch in loader:
                x, y, index = (tensor.to(device, non_blocking=True) for tensor in batch)
                yield Batch(x.float().sub_(127.5).div_(127.5), y, index)


class Samples(Dataset):
    def __init__(self, x: torch.Tensor, y: torch.Tensor):
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int):
        return self.x[i], self.y[i], i


class Peak:
    """A call gives MiB: the most that three steps hold on the device, the data included."""

    def __init__(self, case: Case, device: str, overrides: tuple[str, ...]):
        self.case, self.device, self.overrides = case, device, overrides

    def __call__(self) -> float:
        trainer, _ = build(self.case, *self.overrides, device=self.device, folder=Path("unused"))
        torch.cuda.reset_peak_memory_stats()
        for _, batch in zip(range(3), trainer.loader.epoch(0), strict=False):
            trainer.step(batch)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / 2**20


def loop(device: str, cases: dict[Case, float] = LOOPS, rounds: tuple = (3, 3)) -> Found:
    rows, notes = [], []
    for case, target in cases.items():
        for precision, dtype in DTYPES.items():
            ours, by_hand = (Fit, case, device, (f"train.precision={precision}",)), (ByHand, case, device, dtype)
            named = replace(case, name=f"{case.name} {precision}")
            found = compare.epochs(named, {"ours": ours, "by hand": by_hand}, {"by hand": target}, rounds)
            rows, notes = rows + found[0], notes + found[1]
    return rows, notes


def sam(device: str, cases: dict[Case, int] = SMALL, rounds: tuple = (3, 5)) -> Found:
    step = partial(compare.steps, rounds=rounds, device=device, common=BF16)
    return step(cases, ("sgd", "sam"), ("optim=sam",), most=2.1)


def data(device: str, cases: dict[Case, int] = SMALL, rounds: tuple = (3, 3)) -> Found:
    step = partial(compare.steps, rounds=rounds, device=device, common=BF16)
    return step(cases, ("data on the device", "DataLoader"), (), make=Streamed)


def augment(device: str, cases: dict[Case, int] = {LENET: 400}, rounds: tuple = (3, 5)) -> Found:  # noqa: B006 (only read)
    step = partial(compare.steps, rounds=rounds, device=device, common=BF16)
    return step(cases, ("plain", "crop_flip"), ("augment=crop_flip",), most=1.05)


def compiled(device: str, cases: dict[Case, int] = LARGE, rounds: tuple = (3, 5)) -> Found:
    step = partial(compare.steps, rounds=rounds, device=device, common=BF16)
    return step(cases, ("eager", "compiled"), ("train.compile=true",))


def channels_last(device: str, cases: dict[Case, int] = LARGE, rounds: tuple = (3, 5)) -> Found:
    step = partial(compare.steps, rounds=rounds, device=device, common=BF16)
    return step(cases, ("contiguous", "channels_last"), ("train.channels_last=true",))


def memory(device: str, cases: tuple[Case, ...] = tuple(LARGE)) -> Found:
    notes = []
    for case in cases:
        for words in (("train.precision=fp32",), BF16, (*BF16, "optim=sam"), (*BF16, "train.channels_last=true")):
            peak = once(Peak, case, device, words)
            notes.append(f"memory peak of {case.name}, batch {case.batch_size}, {' '.join(words)}: {peak:,.0f} MiB")
    return [], notes


PARTS = (loop, sam, data, augment, compiled, channels_last, memory)


def main(argv: list[str] | None = None) -> int:
    argparse.ArgumentParser(prog="python -m scripts.bench.gpu", description=TITLE).parse_args(argv)
    if not torch.cuda.is_available():
        print("there is no CUDA device here: nothing was measured")
        return 0
    rows, notes = [], []
    for part in PARTS:
        print(f"{part.__name__} ...", flush=True)
        found = part("cuda")
        rows, notes = rows + found[0], notes + found[1]
    name = torch.cuda.get_device_name()
    slug = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    text = report.text(TITLE, ABOUT, (rows, notes), "python -m scripts.bench.gpu", PACKAGES, device=name)
    report.write(f"gpu_{slug}", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
