"""A finished run measured again, on its data and others, and its predictions in a file."""

import json

import numpy as np
import pytest
import torch

from runner.command.build import build
from runner.core.measure import measures
from runner.core.mistake import ConfigError
from runner.engine import reopened
from runner.engine.run import run
from runner.record.files import finished
from runner.record.identity import folder
from tests.tiny import compose

SMALL = ["dataset.subset=300", "model.hidden=[16]", "train.epochs=3", "optim.lr=0.1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with an average of its weights, and its folder."""
    config = compose(
        *SMALL, "hook=[ema]", "hook.ema.decay=0.9", "train.keep=[5]", f"outputs_dir={tmp_path_factory.mktemp('o')}"
    )
    run(config, [], say=lambda *_: None)
    return folder(config)


def close(found: dict, line: dict) -> None:
    assert found and all(line[key] == pytest.approx(value, abs=1e-6) for key, value in found.items())


def test_its_own_data_measure_as_in_its_result(trained):
    before = {path.name: path.read_bytes() for path in trained.iterdir() if path.is_file()}
    path, found = reopened.evaluate(trained)
    close(found, finished(trained)["last"])
    assert path.name == "evaluation-digits-last.json" and json.loads(path.read_text())["measures"] == found
    assert json.loads(path.read_text())["samples"] == {"val": 30, "test": 359}
    close(reopened.evaluate(trained, weights="best_val")[1], finished(trained)["best_val"])
    assert all((trained / name).read_bytes() == content for name, content in before.items())
    _, early = reopened.evaluate(trained, weights="step_5", splits=["test"])
    assert set(early) == {key for key in found if key.startswith("test_")} and early != found


def test_predictions_give_the_measures_again(trained):
    path, found = reopened.evaluate(trained, splits=["val", "test"], predictions=True)
    kept = reopened.read(trained / "predictions-digits-last.parquet")
    assert {split: (tuple(z.shape), len(y)) for split, (z, y) in kept.items()} == {
        "val": ((30, 10), 30),
        "test": ((359, 10), 359),
    }
    for split, (logits, y) in kept.items():
        again = {f"{split}_{key}": value for key, value in measures(logits, y, "classes").items()}
        assert again == pytest.approx({key: value for key, value in found.items() if key.startswith(split)}, abs=1e-6)


def test_damaged_data_are_measured_apart_and_test_stays_as_it_was(trained):
    words = ["dataset=digits", "dataset.noise=symmetric_other", "dataset.noise_rate=0.5"]
    path, noisy = reopened.evaluate(trained, words, splits=["train", "test"])
    assert path.name.startswith("evaluation-digits-") and path.name != "evaluation-digits-last.json"
    _, clean = reopened.evaluate(trained, splits=["train", "test"])
    assert all(noisy[key] == value for key, value in clean.items() if key.startswith("test_"))
    assert noisy["train_accuracy"] < 0.8 * clean["train_accuracy"]


def test_other_data_are_normalised_as_those_of_training(trained, tmp_path):
    """The test digits in a set of another mean and deviation: measured as ever, where its own would say otherwise."""
    own = reopened.opened(trained)[0].dataset
    x, y = own.test.x.numpy(), own.test.y.numpy()
    np.savez(tmp_path / "mine.npz", x_train=np.full_like(x, 16), y_train=y, x_test=x, y_test=y)
    words = ["dataset=arrays", f"dataset.path={tmp_path}/mine.npz", "dataset.val=0"]
    apart = build(compose(*words)["dataset"], "dataset", seed=0)
    apart.prepare()
    assert not torch.allclose(apart.mean, own.mean)
    _, found = reopened.evaluate(trained, words, splits=["test"])
    close(found, finished(trained)["last"])


@pytest.mark.parametrize(
    "words, options, line",
    [
        (["dataset=wine"], {}, "dataset=wine: its shape is (13,), and the run was trained on (1, 8, 8)"),
        (["dataset=breast_cancer"], {}, "its shape is"),
        (["loss=poly"], {}, "'loss=poly': of a finished run the data can be others: dataset, data_dir, cache_dir"),
        ([], {"weights": "step_6"}, "step_6.pt is missing; there are: last, best_test, best_val, step_5"),
        (["dataset=digits", "dataset.val=0"], {"splits": ["val"]}, "there is no split val"),
    ],
)
def test_what_cannot_be_measured_is_one_line(trained, words, options, line):
    with pytest.raises(ConfigError) as error:
        reopened.evaluate(trained, words, **options)
    assert line in str(error.value)


def test_the_command(trained, tmp_path, capsys):
    assert reopened.main([str(trained), "--split", "test", "--predictions"]) == 0
    out = capsys.readouterr().out
    assert f"test_accuracy            {100 * finished(trained)['last']['test_accuracy']:.2f} %" in out
    for arguments, line in (([str(tmp_path)], "is no finished run"), ([str(trained), "--split", "all"], "--split all")):
        with pytest.raises(SystemExit) as stop:
            reopened.main(arguments)
        assert stop.value.code == 2 and line in capsys.readouterr().err


def test_a_quantized_run_is_measured_as_it_was_trained(tmp_path):
    config = compose(*SMALL, "quantization=lsq", f"outputs_dir={tmp_path}")
    result = run(config, [], say=lambda *_: None)
    close(reopened.evaluate(folder(config))[1], result["last"])
