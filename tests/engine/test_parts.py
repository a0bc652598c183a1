"""The smallest part of a batch is known before the start, wherever it comes from; who would fail at it is refused."""

import pytest
import torch
from torch import nn

from runner.core import distributed
from runner.core.batch import Output
from runner.core.mistake import ConfigError
from runner.engine import parts
from runner.loss.ce import CrossEntropy
from runner.model import Classifier
from tests.tiny import trainer


class Normed(Classifier):
    """Batch normalisation of features: of one sample there is nothing to take statistics over."""

    def __init__(self, shape, classes, hidden: list[int]):
        width = torch.Size(shape).numel()
        super().__init__(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(width)), nn.Linear(width, classes))


class Spatial(Classifier):
    """Batch normalisation over positions, of which one sample has many."""

    def __init__(self, shape, classes, hidden: list[int]):
        width = torch.Size(shape).numel()
        super().__init__(nn.Sequential(nn.BatchNorm2d(shape[0]), nn.Flatten()), nn.Linear(width, classes))

    def forward(self, x) -> Output:
        sizes.append(len(x))
        return super().forward(x)


class Spread(CrossEntropy):
    """The unbiased spread over a batch, which is not finite for one sample."""

    def forward(self, out, batch):
        return super().forward(out, batch) + 0.01 * out.logits.std(0).sum()


sizes: list[int] = []
DATA = ["dataset=digits", "dataset.val=0", "train.epochs=2", "schedule=constant"]


def model(name: str) -> str:
    return f"model._target_=tests.engine.test_parts.{name}"


# 65 samples; the words, what the refusal must name, and what to set
ORIGINS = {
    "tail": (["train.batch_size=32"], "the last batch of an epoch of 65 samples", "train.drop_last=true"),
    "batch": (["train.batch_size=1"], "a batch of 1 would be one sample", "a larger train.batch_size"),
    "m": (["train.batch_size=64", "train.drop_last=true", "sharpness=sam", "sharpness.m=21"], "sharpness.m=21", "m"),
    "m in the tail": (["train.batch_size=60", "sharpness=sam", "sharpness.m=4"], "sharpness.m=4", "sharpness.m or"),
    "accumulation": (
        ["train.batch_size=33", "train.drop_last=true", "train.accumulate=9"], "train.accumulate=9", "train.accumulate",
    ),
    "accumulation of m": (
        ["train.batch_size=65", "sharpness=sam", "sharpness.m=5", "train.accumulate=3"], "train.accumulate=3", "train",
    ),
    "a client's parts": (
        ["federated=fedavg", "federated.clients=5", "federated.rounds=1", "train.batch_size=13", "sharpness=sam",
         "sharpness.m=4"], "a batch of 13, cut by sharpness.m=4", "sharpness.m",
    ),
}  # fmt: skip


@pytest.mark.parametrize("origin", ORIGINS)
def test_a_part_of_one_sample_is_refused_for_a_model_that_would_fail(origin):
    words, named, instead = ORIGINS[origin]
    with pytest.raises(ConfigError) as error:
        trainer(*DATA, "dataset.subset=65", model("Normed"), *words)
    line = str(error.value)
    assert "\n" not in line and named in line and "Expected more than 1 value per channel" in line
    assert instead in line.rpartition(";")[2]


@pytest.mark.parametrize("origin", [name for name in ORIGINS if "client" not in name])
def test_and_is_trained_by_one_that_would_not(origin):
    run = trainer(*DATA, "dataset.subset=65", model("Spatial"), *ORIGINS[origin][0])
    before = {name: buffer.clone() for name, buffer in run.model.named_buffers()}
    assert all(int(buffer) == 0 for name, buffer in before.items() if "tracked" in name)  # the trial left nothing
    sizes.clear()
    for _ in run.updates(0, 0):
        pass
    assert min(sizes) == 1  # it was really reached


def test_what_is_not_reached_is_not_refused():
    words = [*DATA, "dataset.subset=65", model("Normed"), "train.batch_size=32"]
    for own in (["train.steps=2"], ["train.drop_last=true"], ["train.batch_size=31"]):
        trainer(*words, *own)
    with pytest.raises(ConfigError, match="the last batch"):
        trainer(*words, "train.steps=3")


def test_shares_of_processes(monkeypatch):
    run = trainer(*DATA, "dataset.subset=65", model("Normed"), "train.batch_size=31")
    example = next(run.loader.epoch(0))
    monkeypatch.setattr(distributed, "world", 2)
    parts.check(run, [(62, 4, "an epoch of")], example)  # 15 and 16
    with pytest.raises(ConfigError, match="the last batch of an epoch of 65 samples shared by 2 processes"):
        parts.check(run, [(65, 6, "an epoch of")], example)  # 3: 1 and 2
    run.sharpness.m = 7
    with pytest.raises(ConfigError, match="a part of a batch of 31 shared by 2 processes, cut by sharpness.m=7"):
        parts.check(run, [(62, 4, "an epoch of")], example)  # 15: 7, 7, 1


def test_bags_are_whole_and_their_epoch_is_shorter():
    """65 samples in bags of 4 are 64."""
    trainer(*DATA, "dataset.subset=65", "dataset.bag_size=4", model("Normed"), "train.batch_size=32", "loss=easyllp")


def test_a_loss_that_one_sample_is_nothing_to_is_refused_too():
    words = [*DATA, "dataset.subset=65", "loss._target_=tests.engine.test_parts.Spread"]
    trainer(*words, "train.batch_size=64", "train.drop_last=true")
    with pytest.raises(ConfigError, match="what comes out is not finite"):
        trainer(*words, "train.batch_size=64")


FEDERATION = ["federated=fedavg", "federated.clients=5", "federated.rounds=1", "dataset.subset=65", "model.hidden=[8]"]


@pytest.mark.parametrize("kind, kept", [("Normed", 12), ("Spatial", 13)])
def test_a_client_leaves_out_its_last_sample_only_where_the_model_cannot_take_it(kind, kept):
    run = trainer(*DATA, *FEDERATION, "train.batch_size=4", model(kind))
    assert run.hooks.named["federated"].clients.kept == [kept] * 5
    said = [line for line in run.notices if "5 clients leave out the last sample of every epoch" in line]
    assert len(said) == (kind == "Normed")


def test_a_client_with_one_sample_trains_where_the_model_can():
    words = [*DATA, *FEDERATION, "dataset.subset=5", "federated.minimum=1"]
    with pytest.raises(ConfigError, match="client 0 has 1 sample"):
        trainer(*words, model("Normed"))
    run = trainer(*words, model("Spatial"))
    assert run.hooks.named["federated"].clients.kept == [1] * 5
