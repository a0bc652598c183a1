"""Nothing printed ends a run: closed pipes, full disks, lost terminals; signals are acknowledged, save, and stop."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from runner.core import output
from runner.record.files import finished
from runner.record.folder import Stopped
from tests.tiny import CLOSED, ROOT, Forked, compose, forked

TINY = ["dataset.subset=64", "train.batch_size=32", "train.epochs=3", "model.hidden=[4]", "device=cpu"]
LONG = [*TINY, "train.epochs=100000"]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX")


def results(cwd: Path) -> list[dict]:
    return [finished(path.parent) for path in sorted(cwd.glob("outputs/*/*/result.json"))]


def wait_for(cwd: Path, pattern: str, lines: int = 1) -> None:
    end = time.monotonic() + 60
    while not any(path.read_text().count("\n") >= lines for path in cwd.glob(pattern)):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_pipe_that_is_closed_after_the_first_line(tmp_path):
    """`python -m runner ... | sed 1q`, in processes of their own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "runner", *TINY], cwd=tmp_path, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == 0
    (result,) = results(tmp_path)
    assert result["epochs"] == 3


@pytest.mark.parametrize("words", [["--list"], ["--help"]])
def test_a_list_that_nobody_reads_to_its_end(tmp_path, words):
    read, write = os.pipe()
    os.close(read)
    child = forked(*words, cwd=tmp_path, stdout=write)
    os.close(write)
    assert (child.wait(), child.err) == (0, "")


FULL = "/dev/full"
STREAMS = {
    "full": lambda: os.open(FULL, os.O_WRONLY),
    "closed": lambda: CLOSED,
    "read-only": lambda: os.open(os.devnull, os.O_RDONLY),
}


@pytest.mark.parametrize("kind", STREAMS)
def test_a_run_that_cannot_speak_is_done_all_the_same(tmp_path, kind):
    if kind == "full" and not Path(FULL).exists():
        pytest.skip("no /dev/full")
    child = forked(*TINY, cwd=tmp_path, stdout=STREAMS[kind](), stderr=STREAMS[kind]())
    assert child.wait() == 0
    (result,) = results(tmp_path)
    assert result["epochs"] == 3
    (path,) = tmp_path.glob("outputs/*/*/metrics.jsonl")
    assert path.read_text().count("\n") == 3  # and nothing that was said went into a file of the run
    assert "epoch 3/3" not in "".join(p.read_text(errors="ignore") for p in path.parent.iterdir() if p.is_file())


@pytest.mark.parametrize("kind", STREAMS)
def test_the_exit_status_stays_that_of_the_run(tmp_path, kind):
    child = forked("loss=nobody", cwd=tmp_path, stdout=STREAMS[kind](), stderr=STREAMS[kind]())
    assert child.wait() == 2
    child = forked(*TINY, "optim.lr=1e20", "schedule=constant", cwd=tmp_path, stdout=STREAMS[kind](),
                   stderr=STREAMS[kind]())  # fmt: skip
    assert child.wait() == 1


def test_a_sweep_whose_output_is_closed_is_done(tmp_path):
    read, write = os.pipe()
    os.close(read)
    words = ["-m", "seed=0,1", "sweep.jobs=1", "sweep.pack=off", "hydra/launcher=basic"]
    child = forked(*TINY, *words, cwd=tmp_path, stdout=write, stderr=write)
    os.close(write)
    assert child.wait() == 0
    assert len(results(tmp_path)) == 2


@pytest.mark.parametrize("word", ["write", "flush"])
def test_a_stream_is_silent_after_its_first_failure(word):
    class Broken:
        closed, wrote = False, 0

        def write(self, text):
            self.wrote += 1
            if word == "write":
                raise BrokenPipeError

        def flush(self):
            if word == "flush":
                raise OSError(28, "No space left on device")

    before, broken = (sys.stdout, sys.stderr), Broken()
    sys.stdout = sys.stderr = broken
    try:
        with output.unbreakable(), output.unbreakable():
            print("a", flush=True)
            print("b", file=sys.stderr, flush=True)
        assert sys.stdout is broken
    finally:
        sys.stdout, sys.stderr = before


# ---- signals


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_is_acknowledged_and_the_state_saved(tmp_path, number, status):
    child = forked(*LONG, cwd=tmp_path)
    wait_for(tmp_path, "outputs/*/*/metrics.jsonl")
    child.kill(number)
    assert child.wait() == status
    first, second = child.err.splitlines()
    assert first.startswith(f"{number.name}: stopping")
    assert "goes on from here" in second
    (path,) = tmp_path.glob("outputs/*/*/last.pt")
    state = torch.load(path, weights_only=True)
    assert state["lines"] == (path.parent / "metrics.jsonl").read_text().count("\n")


def test_nohup_means_what_it_says(tmp_path):
    def call() -> int:
        from runner.__main__ import main

        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        return main(LONG)

    child = Forked(call, tmp_path)
    wait_for(tmp_path, "outputs/*/*/metrics.jsonl")
    child.kill(signal.SIGHUP)
    wait_for(
        tmp_path,
        "outputs/*/*/metrics.jsonl",
        (next(tmp_path.glob("outputs/*/*/metrics.jsonl"))).read_text().count("\n") + 3,
    )
    child.kill(signal.SIGTERM)
    assert child.wait() == 143


def test_a_second_interrupt_is_at_once(tmp_path):
    """In a step that takes long."""

    def call() -> int:
        from runner.__main__ import main
        from runner.engine.trainer import Trainer

        step = Trainer.step

        def long(self, batch):
            if self.count == 3:
                Path("in").touch()
                time.sleep(1000)
            return step(self, batch)

        Trainer.step = long
        return main(LONG)

    child = Forked(call, tmp_path)
    wait_for(tmp_path, "in", lines=0)
    child.kill(signal.SIGINT)
    end = time.monotonic() + 60
    while "stopping after this step" not in child.err:  # said while the step goes on
        assert time.monotonic() < end
        time.sleep(0.01)
    child.kill(signal.SIGINT)
    assert child.wait() == 130
    assert "at once" in child.err.splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_comes_after_training_is_stopped_at_once_and_done_again(tmp_path, number, monkeypatch):
    """Also where pictures are drawn, whose errors are no reason to stop."""
    from runner.engine.run import run
    from runner.record import curves

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(curves, "draw", lambda *_: signal.raise_signal(number))
    config = compose(*TINY)
    with pytest.raises(Stopped, match=number.name):
        run(config, [], say=lambda *_: None)
    assert results(tmp_path) == []
    (path,) = tmp_path.glob("outputs/*/*/last.pt")
    saved = path.read_bytes()
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert run(config, [], say=lambda *_: None)["epochs"] == 3
    assert path.read_bytes() == saved


def test_an_epoch_is_said_after_it_is_saved(tmp_path, monkeypatch):
    from runner.engine.run import run

    monkeypatch.chdir(tmp_path)
    seen = []

    def say(line: str) -> None:
        if line.startswith("epoch 3/3"):
            (path,) = tmp_path.glob("outputs/*/*/last.pt")
            seen.append(torch.load(path, weights_only=True)["lines"])

    run(compose(*TINY), [], say=say)
    assert seen == [3]
