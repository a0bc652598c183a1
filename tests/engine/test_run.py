"""Whole runs from the command line: the folder, skipping, interruption, divergence, a full disk, sweeps."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from runner.core import checkpoint
from runner.record.files import read_config
from tests.tiny import ROOT, command

SMALL = ["dataset.subset=300", "train.batch_size=30", "model.hidden=[16]", "schedule=constant", "optim=sam",
         "augment=crop_flip", "hook=ema"]  # fmt: skip


def folder(cwd, name="runs"):
    (found,) = [path for path in (cwd / "outputs" / name).iterdir() if path.is_dir() and path.name != ".sweeps"]
    return found


def lines(path) -> list[dict]:
    """metrics.jsonl without what depends on the clock."""
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in ("seconds", "images_per_second")} for record in records]


def start(*words, cwd):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "runner", *words], cwd=cwd, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


HELD = """
import sys, time
from pathlib import Path
from runner.__main__ import main
from runner.engine.trainer import Trainer
lines, step = int(sys.argv.pop(1)), Trainer.step
def there():
    return any(path.read_text().count("\\n") >= lines for path in Path().glob("outputs/*/*/metrics.jsonl"))
def held(self, batch):
    while there() and not Path("go").exists():
        time.sleep(0.01)
    return step(self, batch)
Trainer.step = held
sys.exit(main())
"""


def start_held(lines: int, *words, cwd):
    """A run that waits for the file `go` when it has so many lines: it cannot end before the signal, however fast."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    (cwd / "go").unlink(missing_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", HELD, str(lines), *words], cwd=cwd, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for_line(cwd, count: int, name="runs") -> None:
    """Until metrics.jsonl of the only run has `count` lines."""
    for _ in range(4800):
        for path in (cwd / "outputs" / name).glob("*/metrics.jsonl"):
            if path.read_text().count("\n") >= count:
                return
        time.sleep(0.05)
    raise AssertionError("the run did not get there within four minutes")


def test_the_folder_of_a_finished_run_and_the_second_call(tmp_path):
    words = [*SMALL, "train.epochs=3", "name=first"]
    result = command(*words, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    place = folder(tmp_path, "first")
    names = {path.name for path in place.iterdir()}
    assert {".hydra", "environment.json", "metrics.jsonl", "last.pt", "best_val.pt", "best_test.pt", "curves.png",
            "reliability.png", "classes.png", "result.json"} <= names  # fmt: skip
    stored = json.loads((place / "result.json").read_text())
    records = lines(place)
    assert [record["epoch"] for record in records] == [1, 2, 3]
    assert {"train_loss", "train_accuracy", "test_accuracy", "test_nll", "test_ece", "val_accuracy"} <= set(records[0])
    assert stored["last"]["test_accuracy"] == records[-1]["test_accuracy"]
    best = max(records, key=lambda record: record["val_accuracy"])
    assert stored["best_val"]["epoch"] == best["epoch"]
    assert stored["best_test"]["test_accuracy"] == max(record["test_accuracy"] for record in records)
    assert torch.load(place / "best_val.pt", weights_only=True)["step"] == stored["best_val"]["step"]
    assert place.name in result.stdout
    assert "sharpness=sam*" in result.stdout  # set by optim=sam, and said so
    before = {path: path.stat().st_mtime_ns for path in place.iterdir()}
    again = command(*words, cwd=tmp_path)
    assert again.returncode == 0
    assert "already done" in again.stdout
    assert before == {path: path.stat().st_mtime_ns for path in place.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run to compare with."""
    cwd = tmp_path_factory.mktemp("whole")
    result = command(*SMALL, "train.epochs=40", cwd=cwd)
    assert result.returncode == 0, result.stderr
    return folder(cwd)


def assert_same_run(place, whole):
    assert lines(place) == lines(whole)
    a, b = (checkpoint.load(path / "last.pt") for path in (place, whole))
    for key in a["model"]:
        assert torch.equal(a["model"][key], b["model"][key])
    assert torch.equal(a["hooks"]["ema"]["average"], b["hooks"]["ema"]["average"])
    assert (place / "result.json").exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(number, status, whole, tmp_path):
    # SIGKILL leaves no time for a save, and epochs this short share one: save after every step
    words = [*SMALL, "train.epochs=40", "train.save_minutes=1e-6"]
    process = start_held(3, *words, cwd=tmp_path)
    wait_for_line(tmp_path, 3)
    process.send_signal(number)
    (tmp_path / "go").touch()
    out, err = process.communicate(timeout=240)
    assert process.returncode == status, err
    place = folder(tmp_path)
    done = len(lines(place))
    assert 3 <= done < 40
    assert not (place / "result.json").exists()
    if number != signal.SIGKILL:
        assert "the same command goes on from here" in err
        assert len(err.strip().splitlines()) == 2  # that it has heard, and that it has stopped
    if number == signal.SIGTERM:  # and once more, so that a second resumption is no worse than the first
        process = start_held(done + 3, *words, cwd=tmp_path)
        wait_for_line(tmp_path, done + 3)
        process.send_signal(number)
        (tmp_path / "go").touch()
        process.communicate(timeout=240)
    result = command(*words, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "resumed at step" in result.stdout
    assert_same_run(place, whole)


def test_two_processes_do_not_share_a_folder(tmp_path):
    process = start(*SMALL, "train.epochs=4000", cwd=tmp_path)
    try:
        wait_for_line(tmp_path, 1)
        second = command(*SMALL, "train.epochs=4000", cwd=tmp_path)
        assert second.returncode == 2
        assert f"in use by process {process.pid}" in second.stderr
        assert len(second.stderr.strip().splitlines()) == 1
    finally:
        process.kill()
        process.communicate()


def test_divergence_names_the_step_the_lr_and_the_tensor(tmp_path):
    result = command("optim.lr=1e20", "schedule=constant", "train.epochs=1", cwd=tmp_path)
    assert result.returncode == 1
    (line,) = result.stderr.strip().splitlines()
    assert "not finite at step" in line
    assert "lr 1e+20" in line
    assert "body" in line or "head" in line  # a tensor's name
    place = folder(tmp_path)
    assert json.loads((place / "failed.json").read_text())["type"] == "NonFinite"
    assert not (place / "result.json").exists()


def test_a_full_disk_leaves_the_old_checkpoint_and_says_so(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    checkpoint.save({"x": torch.arange(3)}, path)
    real = torch.save

    def full(state, file):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left on device; the one before it is intact") as caught:
        checkpoint.save({"x": torch.arange(5)}, path)
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.setattr(torch, "save", real)
    assert torch.equal(checkpoint.load(path)["x"], torch.arange(3))
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_a_sweep_skips_what_is_done_goes_on_after_a_failure_and_ends_with_a_table(tmp_path):
    cheap = ["dataset.subset=200", "train.epochs=1", "model.hidden=[8]", "name=two"]
    assert command("loss=ce", "seed=0", *cheap, cwd=tmp_path).returncode == 0
    place = folder(tmp_path, "two")
    stamp = (place / "result.json").stat().st_mtime_ns
    result = command("-m", "loss=ce,poly", "seed=0,1", *cheap, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (place / "result.json").stat().st_mtime_ns == stamp
    assert "1 of them done before" in result.stdout
    done = list((tmp_path / "outputs" / "two").glob("*/result.json"))
    assert len(done) == 4
    for name in ("table.md", "table.tex", "table.csv"):
        assert (tmp_path / "outputs" / "two" / name).exists()
    table = result.stdout[result.stdout.rindex("test_accuracy") :]
    assert "poly" in table
    assert "ce" in table

    result = command("-m", "loss=ce", "optim.lr=0.1,1e20", "seed=0", *cheap, "schedule=constant", cwd=tmp_path)
    assert result.returncode == 1
    assert "1 of 2 runs failed" in result.stderr
    assert "optim.lr=1e20" in result.stderr or "optim.lr=1e+20" in result.stderr
    assert len(list((tmp_path / "outputs" / "two").glob("*/result.json"))) == 5

    # a key that the option of config.yaml has not
    result = command("-m", "sharpness=sam,asam", "sharpness.rho=3e-2", *cheap, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    configs = [read_config(path.parent)["sharpness"] for path in (tmp_path / "outputs" / "two").glob("*/result.json")]
    assert [config["rho"] for config in configs if "rho" in config] == [0.03, 0.03]
