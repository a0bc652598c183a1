"""What is not finite at the end is no result: alone, in a federation, side by side; what is undefined may be."""

import json
import math

import pytest
import torch

from runner.core.measure import broken, measures
from runner.engine.diagnose import NonFinite
from runner.engine.run import run as run_config
from runner.hook import Hook
from runner.loss.mse import Square
from runner.quantization import deploy
from runner.sweep.cells import Cell
from runner.sweep.pack import together
from runner.sweep.runs import measure
from tests.tiny import compose

TINY = ["dataset=digits", "dataset.subset=64", "train.batch_size=32", "train.epochs=2", "model.hidden=[8]"]
TINY += ["schedule=constant"]


class Breaks(Hook):
    """Puts one value that is not finite where the last update would, and so no loss ever sees it."""

    def __init__(self, what: str, infinite: bool = False, above: float = 0.0):
        self.what, self.value, self.above = what, math.inf if infinite else math.nan, above

    def step(self, run):
        if run.count == run.steps - 1 and run.optimizer.param_groups[0]["lr"] > self.above:
            if self.what == "weight":
                next(iter(run.weights.views(run.weights.data)))[1].view(-1)[0] = self.value
            elif self.what == "statistics":
                run.buffers[0].view(-1)[0] = self.value
            elif self.what == "output":
                run.weights.data.mul_(1e30)


def breaks(what: str, *more: str) -> list[str]:
    return ["+hook.breaks._target_=tests.engine.test_divergence.Breaks", f"+hook.breaks.what={what}", *more]


def ended(words: list[str], folder) -> tuple[str, dict]:
    """What the run says as it fails, and its failed.json; there is no result."""
    config = compose(*words, f"outputs_dir={folder}")
    with pytest.raises(NonFinite) as error:
        run_config(config, words, say=lambda *_: None)
    (place,) = [path for path in (folder / "runs").iterdir() if path.is_dir()]
    assert not (place / "result.json").exists()
    kept = json.loads((place / "failed.json").read_text())
    assert kept["type"] == "NonFinite" and kept["message"] == str(error.value) and "\n" not in str(error.value)
    return str(error.value), kept


@pytest.mark.parametrize(
    "words, said",
    [
        (breaks("weight"), "the model is not finite after step 4 (epoch 2, lr 0.02, precision fp32); the first tensor"),
        (breaks("weight", "+hook.breaks.infinite=true"), "the weight 'body.1.weight'"),
        (["model=resnet20", "model.depth=8", *breaks("statistics", "+hook.breaks.infinite=true")], "running_mean'"),
        (
            breaks("output"),
            "brier, ece, adaptive_ece, top5_accuracy not finite after step 4",
        ),
        (["optim.lr=1e30", "train.steps=1"], "not finite after step 1 (epoch 1, lr 1e+30"),
        (
            ["train.batch_size=4", "federated=fedavg", "federated.clients=2", "federated.rounds=2", "optim.lr=3e38"],
            "in none",
        ),
        (["federated=fedavg", "federated.clients=2", "federated.rounds=2", "federated.server.lr=3e38"], "after round"),
    ],
    ids=["weight", "infinite", "statistics", "output", "last step", "clients", "server"],
)
def test_a_run_that_ends_with_what_is_not_finite_failed(words, said, tmp_path):
    words = [word for word in TINY if not (word.startswith("model.") and "model=resnet20" in words)] + words
    message, _ = ended(words, tmp_path)
    assert said in message and "a lower lr, clipping or warm-up may help" in message


def test_a_replica_that_ends_so_fails_alone_and_the_table_says_so(tmp_path):
    """Of three runs side by side one ends with a weight that is not a number."""
    words = [[*TINY, f"optim.lr={lr}", *breaks("weight", "+hook.breaks.above=0.03")] for lr in (0.01, 0.05, 0.02)]
    words = [[*own, f"seed={seed}"] for seed, own in enumerate(words)]
    cells = [Cell(compose(*own, f"outputs_dir={tmp_path}"), own) for own in words]
    ends = {}
    together(cells, 3, lambda line: None, lambda cell, status, message: ends.update({cell.config["seed"]: status}))
    assert ends == {0: "done", 1: "failed", 2: "done"}
    assert json.loads((cells[1].folder / "failed.json").read_text())["type"] == "NonFinite"
    value, why, _ = measure(cells[1].folder, "last", "test_accuracy")
    assert value is None and why.startswith("failed") and "NonFinite: " in why
    assert measure(cells[0].folder, "last", "test_accuracy")[0] > 0


def test_what_the_samples_do_not_define_or_the_loss_is_no_failure():
    logits, one = torch.randn(6, 2), torch.zeros(6, dtype=torch.int64)
    found = measures(logits, one, "classes")
    assert math.isnan(found["auroc"]) and broken(found) == []  # of one class
    found = measures(logits, torch.zeros(6, 2), "multilabel")
    assert math.isnan(found["map"]) and broken(found) == []  # of no positive
    found = measures(logits, one, "classes", Square())
    assert found["nll"] is None and broken(found) == []
    assert broken({f"test_{key}": value for key, value in measures(logits, one, "classes").items()}) == []
    logits[3, 1] = math.nan
    assert broken(measures(logits, one, "classes"))[0] == "accuracy"
    assert broken(measures(logits, torch.ones(6, 2), "multilabel"))[0] == "accuracy"
    assert broken(measures(logits, torch.ones(6, 2), "regression")) == ["mae", "rmse"]
    assert broken({"accuracy": 0.5, "nll": math.inf}) == ["nll"]


@pytest.mark.parametrize(("key", "name"), [("fake", "fake-quantized"), ("deployed", "deployed")])
def test_a_quantized_network_that_ends_not_finite_is_no_result(key, name, tmp_path, monkeypatch):
    report = deploy.report

    def overflows(*given):
        found = report(*given)
        return {**found, key: {**found[key], "test_nll": math.nan}}

    monkeypatch.setattr(deploy, "report", overflows)
    line, kept = ended([*TINY, "quantization=ptq"], tmp_path)
    assert line.startswith(f"{name} test_nll not finite")
    assert kept["type"] == "NonFinite"
