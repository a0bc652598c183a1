"""Thirty kills at random moments: over training, saving, a federation, quantization's end, runs side by side. What is
left goes on by the same command and ends with the bits of an undisturbed run."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from runner.core import checkpoint
from runner.record.files import finished, history
from tests.tiny import Forked, compose

SEED, KILLS = 20, 6  # of each kind
NUMBERS = (signal.SIGKILL, signal.SIGTERM)
COMMON = ["dataset.subset=300", "train.batch_size=30", "device=cpu", "augment=crop_flip", "hook=ema"]
STEPS = "train.save_minutes=1e-9"  # saves after every step
FEDERATED = ["federated.clients=4", "federated.rounds=6", "federated.local_epochs=2", "federated.chunk=1"]
ROUNDING = ["quantization=adaround", "quantization.steps=400", "quantization.calibration=64"]
KINDS = {
    "training": [["optim=sam", "train.epochs=60", "model.hidden=[64]"]],
    "saving": [["train.epochs=8", "model.hidden=[512,512]", STEPS]],
    "federation": [["federated=scaffold", *FEDERATED, STEPS]],
    "quantization": [
        ["quantization=adaround", "quantization.steps=400", "train.epochs=4", "quantization.calibration=64"]
    ],
    "side by side": [["train.epochs=20", "model.hidden=[64]", f"seed={seed}", STEPS] for seed in range(3)],
}
CLOCK = {"seconds", "images_per_second", "finished", "path", "git"}  # a commit while the test runs is no other run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX")]


def same(a, b, where: str) -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a.keys() - CLOCK:
            same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{where}.{i}")
    else:
        assert a == b or a != a, where


def start(words: list[list[str]], place: Path) -> Forked:
    """The command of a run, or what a worker of a sweep does with runs that go side by side."""
    configs = [compose(*COMMON, *own) | {"outputs_dir": str(place)} for own in words]

    def call() -> int:
        from runner.__main__ import launch
        from runner.record.folder import Stopped
        from runner.sweep.cells import Cell
        from runner.sweep.pack import together

        if len(configs) == 1:
            return launch(configs[0], [])
        try:
            left = [Cell(one, []) for one in configs]
            left = [cell for cell in left if finished(cell.folder) is None]
            if len(left) == 1:  # as the pool does: the others had ended before the signal came
                return launch(left[0].config, [])
            failed = []
            together(left, 1, print, lambda cell, status, line: status != "done" and failed.append(line))
            print(*failed)
            return len(failed)
        except Stopped:
            return 143

    return Forked(call, place)


def folders(place: Path) -> list[Path]:
    return sorted(path for path in (place / "runs").glob("[!.]*") if path.is_dir())


def compare(place: Path, whole: Path) -> None:
    names = ("last.pt", "best_val.pt", "best_test.pt", "quantized.pt")
    assert [path.name for path in folders(place)] == [path.name for path in folders(whole)]
    for one, right in zip(folders(place), folders(whole), strict=True):
        for name in names:
            assert (one / name).exists() == (right / name).exists()
            if (one / name).exists():
                same(checkpoint.load(one / name), checkpoint.load(right / name), name)
        same(history(one), history(right), "metrics.jsonl")
        same(finished(one), finished(right), "result.json")


@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_random_moments_it_ends_with_the_same_bits(kind, tmp_path):
    draw = random.Random(f"{SEED} {kind}")
    whole, place = tmp_path / "whole", tmp_path / "place"
    whole.mkdir(), place.mkdir()
    begun = time.monotonic()
    child = start(KINDS[kind], whole)
    assert child.wait(300) == 0, child.err
    length = time.monotonic() - begun
    kills, moments, tries = 0, [], 0
    while kills < KILLS or folders(place):
        if kills < KILLS:
            moment, number = draw.uniform(0.05, 0.6) * length, draw.choice(NUMBERS)
            moments.append(f"{number.name} after {moment:.3f} s of {length:.3f}")
        child = start(KINDS[kind], place)
        if kills < KILLS:
            time.sleep(moment)
            if child.poll() is None:
                child.kill(number)
                kills += 1
        status = child.wait(300)
        assert status in (0, -signal.SIGKILL, 128 + signal.SIGTERM, -signal.SIGTERM), f"{moments}\n{child.err}"
        if status == 0:
            try:
                compare(place, whole)
            except AssertionError as error:
                raise AssertionError(f"{'; '.join(moments)}: {error}") from error
            shutil.rmtree(place)
            place.mkdir()
            moments.clear()
        tries += 1
        assert tries < 10 * KILLS
