"""The benches run, with tiny settings, and say what they measured. Nothing here depends on how fast anything is."""

import functools
import importlib
import os
import random
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from scripts.bench import __main__ as command
from scripts.bench import augment, beside, compare, cost, gpu, loop, optim, qat, report, rounds, rows, sam, start
from scripts.bench import compile as compiling
from scripts.bench.byhand import ByHand
from scripts.bench.cases import LENET, MLP, Fit
from scripts.bench.rounds import CONTROL, Ratio, Row, Target
from tests import test_gpu

TINY = replace(MLP, name="tiny", train=160, test=40)
TINY_LENET = replace(LENET, name="tiny lenet", train=64, test=20, batch_size=16)


@pytest.fixture
def here(monkeypatch):
    """Arms in this process, which takes milliseconds instead of seconds."""

    class Here:
        def __init__(self, make, *arguments, threads, environment=None):
            self.measure = make(*arguments)

        def __call__(self):
            return self.measure()

        def close(self):
            rounds.close(self.measure)

    monkeypatch.setattr(rounds, "Arm", Here)


def check(found: compare.Found, rows: int) -> None:
    """So many rows, with positive ratios and controls, and a note for every comparison."""
    assert len(found[0]) == rows
    for row in found[0]:
        for ratio in (row.ratio, row.control):
            assert 0 < ratio.range[0] <= ratio.median <= ratio.range[1]
        assert row.what in row.cells()
    assert found[1]


# ---- the method


def test_arms_take_turns():
    """Every arm once a turn, in changing order; its time in the round is the median of its turns."""
    calls = []
    values = {"a": iter([1.0, 5.0, 2.0] * 4), "b": iter([3.0, 0.5, 8.0] * 4)}

    def arm(name):
        def measure():
            calls.append(name)
            return next(values[name])

        return measure

    order = random.Random(1)
    found = rounds.by_arm([rounds.in_turns({name: arm(name) for name in "ab"}, 3, order) for _ in range(4)])
    assert found == {"a": [2.0] * 4, "b": [3.0] * 4}
    assert {"".join(calls[i : i + 2]) for i in range(0, len(calls), 2)} == {"ab", "ba"}


def test_arms_are_set_up_anew_and_warmed_up_in_every_round(here):
    made = []

    def make(values):
        made.append(iter(values))
        return lambda: next(made[-1])  # of the last one made: the control

    first = [9.0, 9.0, 1.0, 2.0, 4.0, 6.0]  # two to warm up, then two turns of both
    found = rounds.take_turns({"a": (make, first)}, 3, 2)
    assert len(made) == 6
    assert set(found) == {"a", CONTROL}
    assert [a + b for a, b in zip(found["a"], found[CONTROL], strict=True)] == [6.5] * 3


def test_arms_are_processes_of_their_own():
    found = rounds.take_turns({"a": (functools.partial, os.getpid)}, 2, 1)
    assert len({*found["a"], *found[CONTROL], os.getpid()}) == 5


def test_a_failing_arm_says_why():
    with pytest.raises(RuntimeError, match="invalid literal"):
        rounds.once(functools.partial, int, "three")


def test_ratio_is_taken_within_rounds():
    ratio = Ratio.of([2.0, 6.0, 4.0, 10.0, 8.0], [1.0, 2.0, 1.0, 2.0, 1.0])
    assert (ratio.median, ratio.range) == (4.0, (2.0, 8.0))


@pytest.mark.parametrize(
    ("median", "target", "expected"),
    [
        (0.80, Target(0.9, at_least=True), "missed"),
        (0.92, Target(0.9, at_least=True), "met"),
        (0.97, Target(0.9, at_least=True), "met; not told from 1: inside the control's range"),
        (1.02, Target(1.05, at_least=False), "met; not told from 1: inside the control's range"),
        (2.00, Target(2.1, at_least=False), "met"),
        (2.20, Target(2.1, at_least=False), "missed"),
        (1.50, None, "recorded"),
    ],
)
def test_verdict(median, target, expected):
    control = Ratio(1.0, (0.95, 1.05))
    assert Row("x", Ratio(median, (median, median)), control, target).verdict() == expected


# ---- the benches


def children() -> list[int]:
    """Processes that this one has started and not yet taken leave of."""
    found = [path.read_text().rpartition(")")[2].split() for path in Path("/proc").glob("[0-9]*/stat")]
    return [fields for fields in found if int(fields[1]) == os.getpid()]


@pytest.mark.usefixtures("here")
def test_loop():
    with_lightning = importlib.util.find_spec("lightning") is not None
    check(loop.measure(cases={TINY: (0.9, 1.3)}, rounds={TINY: (2, 1)}), rows=1 + with_lightning)


@pytest.mark.usefixtures("here")
def test_loop_without_lightning(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    rows, notes = loop.measure(cases={TINY: (0.9, 1.3)}, rounds={TINY: (1, 2)})
    assert [row.what for row in rows] == ["tiny: speed of ours over by hand"]
    assert "not installed" in notes[0]


def test_the_hand_written_loop_does_the_same_work():
    """With the whole training set as one batch the order plays no part: both must come to the same numbers."""
    case = replace(TINY, batch_size=160, epochs=12)
    ours, by_hand = Fit(case, "cpu", ("optim.lr=0.1", "optim.momentum=0.9", "optim.weight_decay=5e-4")), ByHand(case)
    assert min(ours(), by_hand()) > 0
    assert by_hand.line["train_loss"] < 2.2  # it learned: ln 10 is 2.3
    for key in ("train_loss", "train_accuracy", "test_accuracy", "test_nll", "test_ece"):
        assert by_hand.line[key] == pytest.approx(ours.line[key], rel=1e-4)


@pytest.mark.usefixtures("here")
def test_optim():
    check(optim.measure(cases={TINY: 2}, rounds=(1, 1)), rows=8)


def test_rows():
    check(rows.measure(cases={TINY: 2, TINY_LENET: 1}, rounds=(1, 1)), rows=2)


@pytest.mark.usefixtures("here")
def test_augment_and_sam():
    check(augment.measure(cases={TINY_LENET: 2}, rounds=(2, 1)), rows=1)
    check(sam.measure(cases={TINY: 2, TINY_LENET: 1}, rounds=(1, 1)), rows=2)


@pytest.mark.usefixtures("here")
def test_beside():
    targets = (0.9, None, 5.0)
    check(beside.measure(cases={TINY_LENET: (1, (), "SGD", targets)}, rounds=(1, 1), count=1), rows=6)


def test_busy_processes_end_with_what_they_disturb():
    before = len(children())
    with beside.busy(2):
        assert len(children()) == before + 2
    assert len(children()) == before


@pytest.mark.usefixtures("here")
def test_losses():
    """One for each kind of labels, and two sizes of epochs."""
    some = ["elr", "ldam", "asl_multilabel", "conr", "ensloss"]
    found = cost.measure(case=TINY_LENET, steps=1, losses=some, epochs={TINY: 5, TINY_LENET: 4}, rounds=(1, 1))
    check(found, rows=len(some) + 2 * 3)


@pytest.mark.usefixtures("here")
def test_quantization(monkeypatch):
    monkeypatch.setattr(qat.shutil, "which", lambda name: None)
    short = ("quantization.steps=2", "quantization.calibration=16")
    found = qat.measure(cases={TINY_LENET: 1}, rounds=(1, 1), rounding=(TINY_LENET, short, 1, 1))
    check(found, rows=2)
    assert "adaround of tiny lenet, 1 threads" in found[1][-1]


def test_compile_needs_a_compiler(monkeypatch):
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    rows, notes = compiling.measure()
    assert rows == []
    assert "no C++ compiler" in notes[0]


def test_start(tmp_path):
    for name, arm in (("bare", start.bare), ("ours", start.ours)):
        (tmp_path / name).mkdir()
        assert 0 < arm(tmp_path / name, 1)() < 600
    assert list((tmp_path / "ours" / "outputs").rglob("environment.json"))  # it was a real run, ended in its first step
    assert not list((tmp_path / "ours" / "outputs").rglob("result.json"))


# ---- what is written


def test_command_writes_a_report(monkeypatch, tmp_path, capsys):
    ratio, control = Ratio(0.93, (0.90, 0.96)), Ratio(1.0, (0.98, 1.02))
    row = Row("mlp: speed of ours over by hand", ratio, control, Target(0.9, at_least=True))
    monkeypatch.setattr(loop, "measure", lambda threads: ([row], [f"{threads} threads asked for"]))
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    assert command.main(["loop", "--threads", "2"]) == 0
    text = (tmp_path / "results" / "loop.md").read_text()
    assert text in capsys.readouterr().out
    assert "`python -m scripts.bench loop --threads 2`" in text
    shown = "0.930 | 0.900 to 0.960 | 1.000 | 0.980 to 1.020 | at least 0.9 | met |"
    assert f"| mlp: speed of ours over by hand | {shown}" in text
    assert "- 2 threads asked for" in text
    assert torch.__version__.split("+")[0] in text
    for private in (socket.gethostname(), str(Path.home()), str(Path(__file__).parent.parent)):
        assert f"{private}/" not in text
        assert f" {private} " not in text


def test_every_bench_can_be_chosen():
    for name in command.NAMES:
        bench = importlib.import_module(f"scripts.bench.{name}")
        assert bench.TITLE
        assert bench.ABOUT
        assert callable(bench.measure)
    with pytest.raises(SystemExit) as stop:
        command.main(["lop"])
    assert stop.value.code == 2


# ---- what needs a GPU, on the CPU


def test_gpu_bench_says_where_there_is_none(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 0
    assert "no CUDA device" in capsys.readouterr().out


@pytest.mark.usefixtures("here")
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_gpu_bench_on_the_cpu():
    check(gpu.loop("cpu", {TINY: 0.9}, rounds=(1, 1)), rows=2)
    check(gpu.sam("cpu", {TINY: 1}, rounds=(1, 1)), rows=1)
    check(gpu.data("cpu", {TINY: 3}, rounds=(1, 1)), rows=1)
    check(gpu.augment("cpu", {TINY_LENET: 1}, rounds=(1, 1)), rows=1)
    check(gpu.channels_last("cpu", {TINY_LENET: 1}, rounds=(1, 1)), rows=1)


def test_gpu_memory_notes(monkeypatch):
    monkeypatch.setattr(gpu, "once", lambda make, case, device, words: 1234.0)
    rows, notes = gpu.memory("cpu", (TINY,))
    assert rows == []
    assert "memory peak of tiny, batch 64, train.precision=bf16 optim=sam: 1,234 MiB" in notes


CHECKS = {
    "precision": lambda folder: test_gpu.check_precision(test_gpu.mlp, "cpu", "bf16"),
    "overflow": lambda folder: test_gpu.check_overflow("cpu", "optim=sgd"),
    "channels_last": lambda folder: test_gpu.check_channels_last("cpu"),
    "deterministic": lambda folder: test_gpu.check_deterministic("cpu", folder, "train.precision=bf16"),
    "resume": lambda folder: test_gpu.check_resume("cpu", folder, "train.precision=fp32"),
    "resident": lambda folder: test_gpu.check_resident("cpu"),
    "augmentation": lambda folder: test_gpu.check_augmentation("cpu", "crop_flip", "cutout", "mixup"),
}


@pytest.mark.parametrize("name", CHECKS)
def test_gpu_checks_run_on_the_cpu(name, tmp_path):
    try:
        CHECKS[name](tmp_path)
    finally:
        torch.use_deterministic_algorithms(False)


def test_gpu_check_of_gradients_can_fail():
    """The distance that the checks use sees a gradient that was not unscaled, and one of other weights."""
    right = test_gpu.gradient(test_gpu.mlp("cpu"))
    assert test_gpu.distance({name: 2 * value for name, value in right.items()}, right) == pytest.approx(1.0)
    other = test_gpu.gradient(test_gpu.mlp("cpu", "seed=1"))
    assert test_gpu.distance(other, right) > 0.5


def test_federated(here, monkeypatch):
    from scripts.bench import federated

    small = {name: replace(case, train=80) for name, case in federated.CASES.items()}
    monkeypatch.setattr(federated, "CASES", small)
    found = federated.measure(rounds=(1, 1), clients=4)
    check(found, 3)
    assert sum(federated.sizes(100, 10_000)) == 10_000
    assert (min(federated.sizes(100, 10_000)), max(federated.sizes(100, 10_000))) == (40, 160)
