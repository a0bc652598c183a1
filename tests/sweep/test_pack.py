"""Packs: which runs go together, and that each run's folder is what it would be alone."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest
import torch

from runner.command.compose import compose
from runner.core import checkpoint
from runner.engine.replicas import Unpackable
from runner.engine.run import run
from runner.engine.trainer import Trainer
from runner.hook import Hook
from runner.record.files import finished, history
from runner.record.folder import Stopped
from runner.sharpness import Sharpness
from runner.sweep import pack
from runner.sweep.cells import Cell
from tests.engine.test_replicas import assert_same
from tests.tiny import SMALL, Forked

TIMES = {"seconds", "images_per_second"}


def cells(folder: Path, differ: list[list[str]], *common: str) -> list[Cell]:
    made = []
    for words in differ:
        overrides = [*SMALL, *common, *words, f"outputs_dir={folder}"]
        made.append(Cell(compose(*overrides), overrides))
    return made


def seeds(count: int) -> list[list[str]]:
    return [[f"seed={seed}"] for seed in range(count)]


def train(some: list[Cell], how="auto") -> dict[str, tuple[str, str]]:
    """together, with what became of each cell."""
    found = {}
    pack.together(some, how, lambda _: None, lambda cell, status, message: found.update({str(cell): (status, message)}))
    return found


@pytest.fixture(autouse=True)
def _always_worth(monkeypatch):
    """Timing decides nothing here."""
    monkeypatch.setattr(pack, "WORTH", 0.0)


# ---- which runs


def test_runs_that_differ_in_floats_and_seed_go_together():
    some = [Cell(compose(*SMALL, *words), words) for words in (
        ["seed=0"], ["seed=1", "optim.lr=0.5"], ["optim.momentum=0.5"], ["optim.weight_decay=1e-3", "seed=7"],
        ["dataset.damage_seed=3"], ["loss=poly"], ["loss=poly", "loss.epsilon=0"], ["loss=poly", "loss.epsilon=1"],
        ["optim.momentum=0"], ["model.hidden=[8]"], ["train.epochs=3"], ["optim.nesterov=true"],
        ["optim=sam"], ["optim=sam", "sharpness.rho=0.2"], ["optim=sam", "sharpness.m=8"],
        ["optim=adam"], ["optim=adam", "optim.betas=[0.5,0.9]"],
    )]  # fmt: skip
    together = [[" ".join(cell.overrides) for cell in group] for group in pack.groups(some)]
    assert together == [
        ["seed=0", "seed=1 optim.lr=0.5", "optim.momentum=0.5", "optim.weight_decay=1e-3 seed=7"],
        ["dataset.damage_seed=3"],  # null elsewhere
        ["loss=poly", "loss=poly loss.epsilon=0", "loss=poly loss.epsilon=1"],
        ["optim.momentum=0"],  # no velocity
        ["model.hidden=[8]"],
        ["train.epochs=3"],
        ["optim.nesterov=true"],
        ["optim=sam", "optim=sam sharpness.rho=0.2"],
        ["optim=sam sharpness.m=8"],
        ["optim=adam", "optim=adam optim.betas=[0.5,0.9]"],
    ]


def test_a_third_partys_optimizer_is_left_alone(tmp_path):
    some = cells(tmp_path, [["seed=0"], ["seed=1", "optim.lr=0.1"]])
    for cell in some:
        cell.config["optim"] = {"_target_": "torch.optim.RMSprop", "lr": cell.config["optim"]["lr"]}
    assert len(pack.groups(some)) == 1
    with pytest.raises(Unpackable, match="RMSprop does not say that it steps flat vectors"):
        train(some)
    assert list(tmp_path.iterdir()) == []


# ---- their folders


def content(folder: Path) -> dict:
    """Everything a run leaves that does not depend on the clock."""
    found = {"metrics": [{k: v for k, v in line.items() if k not in TIMES} for line in history(folder)]}
    result = finished(folder)
    for line in ("last", "best_val", "best_test"):
        result[line] = {key: value for key, value in result[line].items() if key not in TIMES}
    found["result"] = {key: value for key, value in result.items() if key not in ("seconds", "finished", "name")}
    state = checkpoint.load(folder / "last.pt")
    best = {name: checkpoint.load(folder / f"best_{name}.pt") for name in ("val", "test")}
    found["state"] = {key: value for key, value in state.items() if key != "seconds"}
    return found | {"best": best, "files": sorted(path.name for path in folder.iterdir() if path.suffix != ".patch")}


def assert_folders_alike(one: Path, other: Path, atol: float) -> None:
    a, b = content(one), content(other)
    assert a["files"] == b["files"]
    assert a["result"].keys() == b["result"].keys()
    assert [line.keys() for line in a["metrics"]] == [line.keys() for line in b["metrics"]]
    assert_same(a, b, one.name, atol=atol)


def alone(cell: Cell, folder: Path) -> Path:
    config = {**cell.config, "outputs_dir": str(folder)}
    run(config, cell.overrides, say=lambda *_: None)
    return folder / cell.folder.parent.name / cell.folder.name


def test_every_run_of_a_pack_leaves_the_folder_that_it_leaves_alone(tmp_path):
    differ = [["seed=0", "optim.lr=0.05"], ["seed=1"], ["seed=2", "optim.momentum=0.8"]]
    some = cells(tmp_path / "packed", differ, "hook=[ema,clip]", "optim=sam")
    assert train(some) == {str(cell): ("done", "") for cell in some}
    for cell in some:
        # the weights of two epochs of fp32, rounded otherwise; the same in kind to the last key
        assert_folders_alike(alone(cell, tmp_path / "alone"), cell.folder, atol=1e-4)
        sizes = [
            (folder / "last.pt").stat().st_size
            for folder in (cell.folder, tmp_path / "alone" / "runs" / cell.folder.name)
        ]
        assert sizes[0] < 1.3 * sizes[1]  # not the storage of all of them


class Stop(Hook):
    """Asks for a stop after a step of the first epoch, as Ctrl-C does."""

    replicas = True  # so that it is called once for all
    at = 3

    def step(self, run):
        if run.count == self.at and threading.current_thread() is threading.main_thread():
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("first, second", [("packed", "alone"), ("alone", "packed"), ("packed", "packed")])
def test_either_kind_resumes_the_other(tmp_path, monkeypatch, first, second):
    """Interrupted within the first epoch by one, taken to the end by the other: as if nothing had happened."""
    some = cells(tmp_path / "some", seeds(2))
    for cell in some:
        cell.config["hook"] = {"stop": {"_target_": "tests.sweep.test_pack.Stop"}}

    def go(how):
        if how == "packed":
            train(some)
        else:
            for cell in some:
                run(cell.config, cell.overrides, say=lambda *_: None)

    monkeypatch.setattr(Stop, "at", 3)
    if first == "packed":
        monkeypatch.setattr(pack, "_trial", lambda trainers, *_: pack.Replicas(trainers))
        with pytest.raises(Stopped):
            go("packed")
    else:
        for cell in some:
            with pytest.raises(Stopped):
                run(cell.config, cell.overrides, say=lambda *_: None)
    assert all(checkpoint.load(cell.folder / "last.pt")["count"] == 4 for cell in some)
    assert not any((cell.folder / "result.json").exists() for cell in some)
    monkeypatch.setattr(Stop, "at", -1)
    go(second)
    for cell in some:
        assert_folders_alike(alone(cell, tmp_path / "whole"), cell.folder, atol=1e-4)


def test_a_pack_that_was_interrupted_ends_with_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "_trial", lambda trainers, *_: pack.Replicas(trainers))
    monkeypatch.setattr(Stop, "at", 5)
    whole, cut = cells(tmp_path / "whole", seeds(3)), cells(tmp_path / "cut", seeds(3))
    for cell in cut:
        cell.config["hook"] = {"stop": {"_target_": "tests.sweep.test_pack.Stop"}}
    with pytest.raises(Stopped):
        train(cut)
    monkeypatch.setattr(Stop, "at", -1)
    for cell in whole:
        cell.config["hook"] = {"stop": {"_target_": "tests.sweep.test_pack.Stop"}}
    train(cut), train(whole)
    for a, b in zip(whole, cut, strict=True):
        assert_folders_alike(a.folder, b.folder, atol=0)


def test_a_pack_that_ends_within_a_save_is_at_one_step(tmp_path, monkeypatch):
    some = cells(tmp_path, seeds(3), "train.save_minutes=1e-9")
    save, calls = Trainer.save, []

    def then_end(self):
        save(self)
        calls.append(self.count)
        if len(calls) == 5:  # the second of the three, at its second save
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "save", then_end)
    with pytest.raises(KeyboardInterrupt):
        pack.together(some, 1, print, print)
    assert calls[3] == calls[4] > calls[0]
    assert [checkpoint.load(cell.folder / "last.pt")["count"] for cell in some] == calls[:3]
    assert not list(tmp_path.glob("*/*/*.tmp"))


@pytest.mark.parametrize("number", [2, 8])
def test_a_pack_that_is_killed_while_its_files_take_their_places_goes_on_together(number, tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "_trial", lambda trainers, *_: pack.Replicas(trainers))
    whole, cut = (
        cells(tmp_path / name, seeds(3), "train.save_minutes=1e-9", "train.steps=5") for name in ("whole", "cut")
    )
    replace, count = os.replace, iter(range(1000))

    def killed(source, target):
        if str(target).endswith(".pt") and next(count) == number:  # the files of three runs: at another every time
            os._exit(9)
        replace(source, target)

    def call() -> int:
        os.replace = killed
        train(cut)
        return 0

    assert Forked(call, tmp_path).wait() == 9
    assert len({pack._count(cell.folder / "last.pt") for cell in cut}) == 2
    train(cut), train(whole)
    for a, b in zip(whole, cut, strict=True):
        assert_folders_alike(a.folder, b.folder, atol=0)


def test_runs_at_different_steps_are_not_one_pack(tmp_path, monkeypatch):
    some = cells(tmp_path, seeds(2))
    monkeypatch.setattr(Stop, "at", 3)
    for cell in some:
        cell.config["hook"] = {"stop": {"_target_": "tests.sweep.test_pack.Stop"}}
    with pytest.raises(Stopped):
        run(some[0].config, some[0].overrides, say=lambda *_: None)
    with pytest.raises(Unpackable, match="at another step"):
        train(some)


# ---- what goes wrong in one


def test_one_run_diverges_and_the_others_end_as_alone(tmp_path):
    differ = [["seed=0"], ["seed=1", "optim.lr=1e6"], ["seed=2"]]
    some = cells(tmp_path / "packed", differ, "loss=mse", "train.batch_size=16")
    monkey = pytest.MonkeyPatch()
    monkey.setattr(pack, "_trial", lambda trainers, *_: pack.Replicas(trainers))
    try:
        found = train(some)
    finally:
        monkey.undo()
    assert [status for status, _ in found.values()] == ["failed", "done", "done"]
    assert "the loss is not finite at step" in found[str(some[1])][1]
    failed = json.loads((some[1].folder / "failed.json").read_text())
    assert failed["type"] == "NonFinite"
    assert not (some[1].folder / "result.json").exists()
    for cell in (some[0], some[2]):
        assert_folders_alike(alone(cell, tmp_path / "alone"), cell.folder, atol=1e-4)


def test_only_one_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "_trial", lambda trainers, *_: pack.Replicas(trainers))
    some = cells(tmp_path / "packed", [["seed=0", "optim.lr=1e6"], ["seed=1"]], "loss=mse")
    found = train(some)
    assert found[str(some[0])][0] == "failed"
    assert found[str(some[1])] == ("done", "")
    assert_folders_alike(alone(some[1], tmp_path / "alone"), some[1].folder, atol=1e-4)


def test_a_folder_in_use_costs_that_run_alone(tmp_path):
    from runner.record.folder import Record

    some = cells(tmp_path, seeds(3))
    with Record(some[1].folder, []):
        found = train(some)
    assert [found[str(cell)][0] for cell in some] == ["done", "elsewhere", "done"]


def test_a_record_that_cannot_be_written_costs_that_run_alone(tmp_path, monkeypatch):
    from runner.record.folder import Record

    some = cells(tmp_path, seeds(3))
    log = Record.log

    def full(self, record):
        if self.folder == some[2].folder:
            raise OSError(28, f"cannot write {self.path}: No space left on device")
        log(self, record)

    monkeypatch.setattr(Record, "log", full)
    found = train(some)
    assert [found[str(cell)][0] for cell in some] == ["done", "done", "failed"]
    assert "No space left" in found[str(some[2])][1]


class Growing(Hook):
    """Leaves batches of one size for five steps, and of a size that depends on the run's data from then on."""

    def batch(self, run, batch):
        return batch if run.count < 5 else batch.select(slice(0, 20 + int(batch.index[0]) % 7))


def test_what_turns_out_later_goes_on_one_by_one(tmp_path):
    some = cells(tmp_path, seeds(3))
    for cell in some:
        cell.config["hook"] = {"mine": {"_target_": "tests.sweep.test_pack.Growing"}}
    with pytest.raises(Unpackable, match="batches of different sizes"):
        train(some)
    for cell in some:
        run(cell.config, cell.overrides, say=lambda *_: None)
        assert not (cell.folder / "failed.json").exists()
        assert (cell.folder / "result.json").exists()


# ---- the trial


class Liar(Hook):
    """Says that it works on replicas, and takes one norm over all of them."""

    replicas = True

    def gradient(self, run):
        torch.nn.utils.clip_grad_norm_([run.weights.slices[0]], 0.01)


class Ascent(Sharpness):
    """Says that it works on replicas, and steps along the mean of their gradients."""

    replicas = True

    def __call__(self, closure, weights):
        first = closure()
        with weights.restored():
            weights.add_(weights.grad.mean(0).expand_as(weights.data), 0.5)
            closure()
        return first


@pytest.mark.parametrize("part, target", [("hook", "Liar"), ("sharpness", "Ascent")])
def test_the_trial_finds_what_couples_runs(tmp_path, part, target):
    some = cells(tmp_path, seeds(4))
    for cell in some:
        node = {"_target_": f"tests.sweep.test_pack.{target}"}
        cell.config[part] = {"mine": node} if part == "hook" else node
    with pytest.raises(Unpackable, match="side by side its weights differ from those alone by"):
        train(some)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} <= {"packing.lock"}


def test_a_pack_that_is_slower_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "WORTH", 1000.0)
    some = cells(tmp_path, seeds(2))
    with pytest.raises(Unpackable, match=r"2 side by side train at \d+\.\d\d times the speed"):
        train(some)
    left = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert {path for path in left if not path.endswith(".lock")} == {"runs/.sweeps/packing.json"}
    assert set(dict(train(some, how=2).values())) == {"done"}  # asked for by number: no question of speed


def test_more_runs_than_fit_in_memory_are_packed_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "_footprint", lambda trainer: 100)
    monkeypatch.setattr(pack, "_free", lambda device: 1600)  # four at a time
    sizes = []
    own = pack.Replicas.fit
    monkeypatch.setattr(pack.Replicas, "fit", lambda self: (sizes.append(len(self.members)), own(self)))
    some = cells(tmp_path, seeds(7))
    assert set(dict(train(some).values())) == {"done"}
    assert sizes == [3, 4]


def test_a_pack_holds_no_more_files_open_than_it_may(tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "_files", lambda: 16)
    sizes = []
    own = pack.Replicas.fit
    monkeypatch.setattr(pack.Replicas, "fit", lambda self: (sizes.append(len(self.members)), own(self)))
    assert set(train(cells(tmp_path, seeds(8))).values()) == {("done", "")}
    assert sizes == [4, 4]


def test_the_footprint_counts_what_a_backward_needs(tmp_path):
    from tests.tiny import trainer

    run = trainer(*SMALL[:2], "model.hidden=[512]", "train.batch_size=128")
    known = 4 * 128 * (64 + 512 + 10)  # inputs, hidden units, log-probabilities
    vectors = 8 * run.weights.data.nbytes
    found = pack._footprint(run) - vectors
    assert 2 * known <= found <= 6 * known
