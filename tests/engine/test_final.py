"""What is measured once at the end: of the right weights, which are left as they were; and the two pictures."""

import json
import struct

import numpy as np
import pytest
import torch

from runner.core.measure import OF_PROBABILITIES, measures
from runner.engine.final import NAMES, final, loaded, read
from runner.engine.run import Job, run
from runner.engine.trainer import Trainer
from runner.record import pictures
from runner.record.files import finished, history
from tests.record.test_folder import colours
from tests.tiny import SMALL, compose

QUIET = {"say": lambda *_: None}


def job(folder, *words: str) -> Job:
    return Job(compose(*SMALL[:2], "train.epochs=3", *words, f"outputs_dir={folder}"), [])


def trained(folder, *words: str) -> Trainer:
    """After its last epoch, with the best on validation in the first."""
    one = job(folder, *words)
    with one.locked():
        one.start()
        one.trainer.tell = lambda *_: None
        one.federated.run(one.trainer)
    return one.trainer


@pytest.fixture
def _first_is_best(monkeypatch):
    keep = Trainer.keep_best
    monkeypatch.setattr(Trainer, "keep_best", lambda *given: keep(*given) if given[3]["epoch"] == 1 else None)


@pytest.mark.usefixtures("_first_is_best")
@pytest.mark.parametrize(
    "words",
    [
        ["hook=ema"],
        ["loss=adaface"],  # the last layer is the loss's
        ["loss=legendretron"],
        ["model=resnet20", "model.depth=8", "dataset.subset=50"],  # running statistics
        ["quantization=lsq"],
        ["quantization=self_compression"],
        ["federated=fedavg", "federated.rounds=3", "federated.clients=4"],
    ],
    ids=lambda words: words[0],
)
def test_the_best_weights_are_those_of_their_line(words, tmp_path):
    run = trained(tmp_path, *words)
    before = {key: value.clone() for key, value in run.state_dict()["model"].items()}
    head = [parameter.clone() for parameter in run.loss.parameters()]
    first, *_, last = history(run.folder)
    assert run.best["val"]["step"] == first["step"] != last["step"]
    for line, one in ((first, loaded(run, read(run, "val"))), (last, run.hooks.weights(run))):
        with one:
            found = {
                f"{name}_{key}": value
                for name, split in (("val", run.dataset.val), ("test", run.dataset.test))
                for key, value in run.scored(split).items()
            }
        assert found == {key: line[key] for key in found}
    found = final(run)
    assert found["last"].measures != found["best_val"].measures
    for key, line in (("last", last), ("best_val", first)):
        accuracy = np.nanmean(found[key].by_class.numpy())
        assert accuracy == pytest.approx(line["test_balanced_accuracy"], abs=1e-12)
        if not run.loss.probabilities:
            assert found[key].bins is None
            continue
        count, sure, hits = found[key].bins
        assert ((hits - sure).abs().sum() / count.sum()).item() == pytest.approx(line["test_ece"], abs=1e-12)
    for key, value in run.state_dict()["model"].items():
        assert torch.equal(value, before[key])
    assert all(torch.equal(a, b) for a, b in zip(run.loss.parameters(), head, strict=True))


def test_scaling_is_fitted_on_validation(tmp_path):
    run = trained(tmp_path, "dataset=digits")
    found = final(run)["last"].measures
    (val, val_y), (test, y) = run.predict(run.dataset.val), run.predict(run.dataset.test)

    def nll(t):
        return torch.nn.functional.cross_entropy(val.double() / t, val_y).item()

    t = found["temperature"]
    assert 0.05 < t < 20
    assert nll(t) < min(nll(0.99 * t), nll(1.01 * t), nll(1.0))
    scaled = measures(test / t, y, "classes")
    assert {key: found[f"test_scaled_{key}"] for key in OF_PROBABILITIES} == {
        key: scaled[key] for key in OF_PROBABILITIES
    }
    assert set(found) <= set(NAMES)


def test_the_result(tmp_path):
    config = compose(*SMALL, "dataset.imbalance=10", f"outputs_dir={tmp_path}")
    result = run(config, [], **QUIET)
    (path,) = tmp_path.glob("runs/*/result.json")
    stored = finished(path.parent)
    assert stored == json.loads(json.dumps(result))
    for line in (stored["last"], stored["best_val"]):
        assert 0 < line["temperature"] < 100
        assert set(NAMES) & set(line) == {name for name in NAMES if "many" not in name}  # 200 samples, 10 classes
    assert not set(NAMES) & set(stored["best_test"])
    assert [len(stored["classes"][key]) for key in ("names", "last", "best_val")] == [10, 10, 10]
    confused = np.array(stored["classes"]["confused"])
    assert np.allclose(confused.diagonal() / confused.sum(1), stored["classes"]["last"])
    assert np.mean(stored["classes"]["last"]) == pytest.approx(stored["last"]["test_balanced_accuracy"])
    for name, size in (("reliability.png", (640, 640)), ("classes.png", (900, 480)), ("confusion.png", (760, 760))):
        png = (path.parent / name).read_bytes()
        assert struct.unpack(">II", png[16:24]) == size


@pytest.mark.parametrize("words", [["dataset=diabetes", "loss=cs_ib"], ["dataset=multi_digits", "loss=asl_multilabel"]])
def test_other_tasks_have_none_of_it(words, tmp_path):
    small = ["train.epochs=1", "model.hidden=[8]", "dataset.subset=100"]
    result = run(compose(*words, *small, f"outputs_dir={tmp_path}"), [], **QUIET)
    assert result["classes"] is None
    assert not set(NAMES) & set(result["last"])
    assert not [*tmp_path.glob("runs/*/reliability.png"), *tmp_path.glob("runs/*/classes.png")]


def test_without_validation_nothing_is_scaled(tmp_path):
    result = run(compose(*SMALL, "dataset.val=0", f"outputs_dir={tmp_path}"), [], **QUIET)
    assert result["best_val"] is None
    assert {name for name in NAMES if name in result["last"]} <= {name for name in NAMES if name.endswith("accuracy")}
    (path,) = tmp_path.glob("runs/*/reliability.png")
    assert colours(path)["test"] > 0 == colours(path)["train"]  # as trained, and nothing beside it


def test_a_run_that_was_killed_before_its_result_ends_alike(tmp_path):
    whole = run(compose(*SMALL, f"outputs_dir={tmp_path}/whole"), [], **QUIET)
    config = compose(*SMALL, f"outputs_dir={tmp_path}/cut")
    one = Job(config, [])
    one.trainer.tell = lambda *_: None
    with one.locked():
        one.start()
        one.federated.run(one.trainer)
    assert finished(one.folder) is None
    again = run(config, [], **QUIET)
    clock = ("seconds", "images_per_second")
    for key in ("last", "best_val", "classes"):
        a, b = ({k: v for k, v in result[key].items() if k not in clock} for result in (whole, again))
        assert a == b


# ---- the pictures


def test_wilson_by_hand():
    # z = 2: of 4 samples half, (1/2 + 4/8) / (1 + 1) = 1/2, and 2/2 * sqrt(1/16 + 4/64) = sqrt(1/8)
    assert pictures.wilson(np.array([0.5]), np.array([4]), 2.0).ravel() == pytest.approx(
        [0.5 - 0.125**0.5, 0.5 + 0.125**0.5]
    )


def test_reliability_shows_what_is_there(tmp_path):
    path = tmp_path / "reliability.png"
    bins = np.zeros((3, 15))
    bins[:, 14] = 100, 97, 90
    pictures.reliability(bins, None, None, path)
    one = colours(path)
    assert one["test"] > 30 and one["train"] == 0
    bins[:, 7] = 10, 5, 0
    pictures.reliability(bins, None, None, path)
    joined = colours(path)["test"]
    assert joined > one["test"] + 100  # a line between two points
    bins[:, 7] = 1, 0.5, 0
    pictures.reliability(bins, None, None, path)
    assert colours(path)["test"] < joined - 100  # one sample is a point, and no part of a line
    pictures.reliability(bins, bins, 1.0, path)
    assert colours(path)["train"] > 150


def test_classes_stand_in_their_order(tmp_path):
    from PIL import Image

    def blue(accuracy, counts):
        """Pixels of the bars in the left and in the right half."""
        pictures.classes(np.array(accuracy), np.array(counts), None, tmp_path / "classes.png")
        pixels = np.asarray(Image.open(tmp_path / "classes.png").convert("RGB")).astype(int)
        bars = pixels[:, :, 2] - pixels[:, :, 0] > 80
        return bars[:, :477].sum(), bars[:, 477:].sum()

    for counts in ([10, 1000], [1000, 10]):
        left, right = blue([0.0, 1.0], counts)
        assert right > 10_000 and left == 0
    assert blue([float("nan"), float("nan")], [0, 0]) == (0, 0)
    assert sum(blue(np.full(1000, 0.5), np.arange(1000))) > 50_000
