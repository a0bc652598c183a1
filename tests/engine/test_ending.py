"""Runs that end early, the measure that chooses their best epoch, and the weights that they keep on the way."""

import json

import pytest
import torch

from runner.core.checkpoint import load
from runner.core.mistake import ConfigError
from runner.engine import ending
from runner.engine.packable import refuse
from runner.engine.replicas import Unpackable
from runner.engine.run import run
from runner.record.folder import Stopped
from runner.record.identity import identity
from tests.tiny import compose, trainer

SMALL = ["dataset.subset=200", "model.hidden=[16]", "train.epochs=12", "optim.lr=0.3", "schedule=constant"]
QUIET = {"say": lambda *_: None}


def lines_of(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def told(tmp_path):
    def made(*words, say=QUIET["say"]):
        config = compose(*SMALL, *words, f"outputs_dir={tmp_path}")
        result = run(config, [], say=say)
        return result, tmp_path / "runs" / identity(config)

    return made


@pytest.mark.parametrize("patience, every", [(1, 1), (3, 1), (1, 2)])
def test_a_run_ends_where_validation_has_not_become_better(told, patience, every):
    result, folder = told(f"train.patience={patience}", f"train.eval_every={every}", "train.best_by=nll")
    whole, other = told(f"train.eval_every={every}", "train.best_by=nll")
    lines, all_ = lines_of(folder), lines_of(other)
    values = {line["epoch"]: line["val_nll"] for line in all_ if "val_nll" in line}
    best, since = None, 0
    for epoch, value in values.items():  # by hand, over the run that goes on
        best, since = (value, 0) if best is None or value < best else (best, since + 1)
        ended = epoch
        if since == patience:
            break
    assert lines[-1]["epoch"] == ended == result["epochs"] < 12
    for line, same in zip(lines, all_):
        assert line["val_nll"] == same["val_nll"] if "val_nll" in line else True
    assert result["best_val"]["val_nll"] == best
    (said,) = (line for line in result["notices"] if "train.patience" in line)
    assert said.endswith(f"ended after {ended} of 12")
    assert whole["epochs"] == 12


def test_a_federation_ends_by_rounds(told):
    words = ["federated=fedavg", "federated.clients=2", "federated.rounds=15", "federated.minimum=2"]
    result, folder = told(*words, "train.patience=1", "train.epochs=20")
    assert result["epochs"] < 15
    assert any("in round " in line for line in result["notices"])
    assert len(lines_of(folder)) == result["epochs"]


def test_what_was_stopped_when_it_had_ended_goes_on_to_the_same_end(told, tmp_path, monkeypatch):
    """Killed between the last save and the result."""
    from runner.engine.run import Job

    with monkeypatch.context() as patch:
        patch.setattr(Job, "finish", lambda self: (_ for _ in ()).throw(Stopped("SIGTERM")))
        with pytest.raises(Stopped):
            told("train.patience=1", "name=cut")
    result, folder = told("train.patience=1", "name=cut")
    (folder,) = (path.parent for path in tmp_path.glob("cut/*/result.json"))
    expected, _ = told("train.patience=1")
    assert result["epochs"] == expected["epochs"] and result["last"]["val_accuracy"] == expected["last"]["val_accuracy"]
    assert len(lines_of(folder)) == result["epochs"]


def test_the_best_epoch_is_by_the_measure_that_was_asked_for(told):
    by_nll, folder = told("train.best_by=nll")
    values = [line["val_nll"] for line in lines_of(folder)]
    assert by_nll["best_val"]["epoch"] == 1 + values.index(min(values))
    first, other = told()
    accuracies = [line["val_accuracy"] for line in lines_of(other)]
    assert first["best_val"]["epoch"] == 1 + accuracies.index(max(accuracies))


@pytest.mark.parametrize(
    "words, line",
    [
        (["train.patience=2", "dataset.val=0"], "train.patience=2: it goes by validation, and dataset.val is 0"),
        (["train.best_by=nl"], "train.best_by=nl: a split's measures are accuracy, balanced_accuracy"),
        (["train.best_by=nll", "loss=mse"], "train.best_by=nll: this loss does not define it"),
        (["train.keep=[3,500]"], "train.keep=[3, 500]: a run of 36 steps does not come to 500"),
        (["train.keep=some"], "train.keep=some: must be one of none, ends, log"),
        (["train.patience=0"], "train.patience=0: must be"),
    ],
)
def test_what_cannot_be_is_one_line(words, line):
    with pytest.raises(ConfigError) as error:
        trainer(*SMALL, *words)
    assert line in str(error.value)


def test_which_steps_are_kept():
    assert ending.kept("none", 100) == frozenset() == ending.kept(3, 0)
    assert ending.kept("ends", 100) == {0, 100} == ending.kept(2, 100)
    assert ending.kept("log", 100) == {0, 1, 2, 4, 8, 16, 32, 64, 100}
    assert ending.kept(5, 100) == {0, 25, 50, 75, 100}
    assert ending.kept(1, 100) == {100}
    assert ending.kept([7, 3], 100) == {3, 7}


def test_kept_weights_are_those_of_their_step_and_can_be_started_from(told, tmp_path):
    result, folder = told("train.keep=[0,3,7]", "hook=[ema]", "train.steps=9", "train.batch_size=40")
    assert sorted(path.name for path in folder.glob("step_*.pt")) == ["step_0.pt", "step_3.pt", "step_7.pt"]
    short = trainer(*SMALL, "hook=[ema]", "train.steps=9", "train.batch_size=40")
    batches = iter([*short.loader.epoch(0), *short.loader.epoch(1), *short.loader.epoch(2)])
    for step in range(8):
        if step in (0, 3, 7):
            for name, tensor in load(folder / f"step_{step}.pt")["model"].items():
                assert torch.equal(tensor, short.shown()["model"][name]), (step, name)
        short.step(next(batches))
    next_one = trainer(*SMALL, f"checkpoint={folder / 'step_3.pt'}")
    assert next_one.origin["step"] == 3


def test_an_early_end_is_an_end_that_is_kept(told):
    result, folder = told("train.patience=1", "train.keep=ends")
    assert {path.name for path in folder.glob("step_*.pt")} == {"step_0.pt", f"step_{result['steps']}.pt"}


@pytest.mark.parametrize("word", ["train.patience=3", "train.keep=log"])
def test_such_a_run_is_trained_alone_and_called_otherwise(word):
    with pytest.raises(Unpackable, match=word.split("=")[0]):
        refuse(trainer(*SMALL, word))
    plain, other = compose(*SMALL), compose(*SMALL, word)
    assert identity(plain) != identity(other)
    train = {k: v for k, v in plain["train"].items() if k not in ("patience", "best_by", "keep")}
    assert identity(plain | {"train": train}) == identity(plain)
