"""train.channels_last=auto and train.threads: what a run resolves them to, is called, records, and goes on with."""

import copy
import json

import pytest
import torch

from runner.core import checkpoint, threads
from runner.engine.run import Job, run
from runner.record.folder import Stopped
from runner.record.identity import folder, identity
from tests.tiny import compose, trainer

CNN = ("model=cnn", "model.widths=[4,8]", "model.hidden=16")
SHORT = ("dataset.subset=100", "train.batch_size=32", "train.epochs=2", *CNN)


def config_of(tmp_path, *words, name="runs"):
    return copy.deepcopy(compose(*SHORT, "device=cpu", f"outputs_dir={tmp_path}", f"name={name}", *words))


def interrupted(config) -> None:
    """The run, stopped and saved within its first epoch."""
    job = Job(config, [])
    with job.locked():
        job.start()
        job.trainer.stop = "SIGTERM"
        with pytest.raises(Stopped):
            job.trainer.fit()


def resumed(config) -> list[str]:
    """The run to its end; what it said."""
    said = []
    run(config, [], say=lambda text: said.extend(text.splitlines()))
    return said


def weights(config) -> torch.Tensor:
    """Of the finished run, in an order that is no layout's."""
    model = checkpoint.load(folder(config) / "last.pt")["model"]
    return torch.cat([value.contiguous().flatten() for value in model.values()])


@pytest.mark.parametrize(
    ("words", "last"),
    [(CNN, True), ((*CNN, "train.channels_last=false"), False), (("model=mlp",), False)],
    ids=["convolutions", "as said", "none"],
)
def test_auto_is_channels_last_on_a_cpu_where_there_are_convolutions(words, last):
    made = trainer("dataset.subset=100", *words)
    assert made.channels_last is last
    first = next((p for p in made.model.parameters() if p.dim() == 4 and p.shape[1] > 1), None)
    assert first is None or first.is_contiguous(memory_format=torch.channels_last) is last


def test_a_run_is_called_as_before_there_was_auto():
    """An explicit value as before; auto and the number of threads as what was there without them."""
    plain, said = identity(compose(*SHORT, "train.channels_last=false")), identity(compose(*SHORT))
    assert plain == said == identity(compose(*SHORT, "train.threads=3"))
    assert identity(compose(*SHORT, "train.channels_last=true")) != plain


@pytest.mark.parametrize("begun", [True, False, None], ids=["channels last", "channels first", "before it was noted"])
def test_a_run_goes_on_in_the_layout_it_began_in(begun, tmp_path):
    """The optimizer's state is in the order of the weights: in another one it would be other weights' momentum."""
    config = config_of(tmp_path)
    first = config if begun else config_of(tmp_path, "train.channels_last=false")
    assert folder(config) == folder(first)
    interrupted(first)
    state = checkpoint.load(folder(config) / "last.pt")
    assert state["count"] == 1 and state["made"]["channels_last"] is bool(begun)
    if begun is None:
        del state["made"]["channels_last"]
        checkpoint.save(state, folder(config) / "last.pt")
    resumed(config)
    whole = config_of(tmp_path, f"train.channels_last={str(bool(begun)).lower()}", name="whole")
    resumed(whole)
    assert torch.equal(weights(config), weights(whole))


def test_another_layout_than_it_began_in_is_said_and_not_taken(tmp_path):
    interrupted(config_of(tmp_path))
    said = resumed(config_of(tmp_path, "train.channels_last=false"))
    assert "note    train.channels_last=False: the run began with another, and goes on so" in said
    whole = config_of(tmp_path, name="whole")
    resumed(whole)
    assert torch.equal(weights(config_of(tmp_path)), weights(whole))


def test_threads_are_recorded_and_another_number_is_said_on_resuming(tmp_path):
    config = config_of(tmp_path)
    interrupted(config)
    assert checkpoint.load(folder(config) / "last.pt")["made"]["threads"] == 1
    before = threads.allowed()
    try:
        said = resumed(config_of(tmp_path, "train.threads=2"))
    finally:
        threads.allow(before)
    assert "note    sums were taken by 1 thread, are by 2 now, and round otherwise" in said
    made = json.loads((folder(config) / "result.json").read_text())["made"]
    assert (made["threads"], made["channels_last"]) == (2, True)
