"""What a terminal shows: something at once, and lines of its width; a file or a pipe gets them whole."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from runner.core import output
from tests.conftest import ROOT

EPOCH = "epoch  1/20  loss 1.8706  train 49.30 %  val 80.56 %  test 82.45 %  nll 1.1056  ece 0.4453  lr 0.0199  6,095/s"
OPTIONS = "options model=mlp dataset=digits loss=ce risk=mean optim=sgd schedule=cosine sharpness=none hook=[ema]"


@pytest.fixture
def terminal(monkeypatch):
    def of(width: int):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        monkeypatch.setenv("COLUMNS", str(width))
        return output.fitted

    return of


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_lines_fit_and_lose_no_word_but_of_an_epoch(width, terminal):
    fitted = terminal(width)
    text = fitted(f"{OPTIONS}\n{EPOCH}")
    assert all(len(line) <= width for line in text.split("\n"))
    *options, epoch = text.split("\n")
    assert " ".join(options).split() == OPTIONS.split()
    assert all(line.startswith(" " * 8) for line in options[1:])
    assert EPOCH.startswith(epoch) and epoch.startswith("epoch  1/20  loss 1.8706")
    assert EPOCH[len(epoch) :].startswith("  ")  # no field is cut in two


def test_at_eighty_an_epoch_keeps_its_accuracies(terminal):
    fitted = terminal(80)
    assert fitted(EPOCH) == "epoch  1/20  loss 1.8706  train 49.30 %  val 80.56 %  test 82.45 %  nll 1.1056"
    assert fitted("short") == "short"


def test_elsewhere_they_are_whole():
    assert output.fitted(f"{OPTIONS}\n{EPOCH}") == f"{OPTIONS}\n{EPOCH}"


def test_a_run_on_a_terminal_of_eighty(tmp_path):
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    env = {key: value for key, value in os.environ.items() if key != "COLUMNS"} | {"PYTHONPATH": str(ROOT)}
    words = ["train.epochs=2", "dataset.subset=60", "loss=poly", "optim=sam", "hook=[ema,clip]"]
    command = subprocess.Popen(
        [sys.executable, "-m", "runner", *words], cwd=tmp_path, env=env, stdout=side, stderr=side, stdin=side
    )
    os.close(side)
    seen = b""
    while True:
        try:
            part = os.read(main, 4096)
        except OSError:
            break
        if not part:
            break
        seen += part
    os.close(main)
    assert command.wait(60) == 0
    text = seen.decode()
    assert text.startswith("loading ...\r")
    lines = [line.rpartition("\r")[2] for line in text.replace("\r\n", "\n").split("\n")]
    assert any(line.startswith("run     ") for line in lines)
    assert any(line.startswith("epoch 2/2  loss ") for line in lines)
    assert all(len(line) <= 80 for line in lines if "\x1b" not in line), max(lines, key=len)
