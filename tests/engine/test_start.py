"""`checkpoint=`: what a run starts from, what its identity depends on, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from runner.core import checkpoint
from runner.core.mistake import ConfigError
from runner.engine.run import Job, run
from runner.engine.start import Start
from runner.engine.trainer import Trainer
from runner.quantization.ptq import PTQ
from runner.record.identity import folder, identity
from runner.sweep import pack
from runner.sweep.cells import Cell
from runner.sweep.runs import settings
from tests.tiny import SMALL, command, compose

DEEP = [*SMALL[:-1], "model.hidden=[16,16]"]
ROUND = ["quantization=adaround", "quantization.steps=20", "quantization.calibration=64"]


def silent(*_) -> None: ...


def go(place: Path, *words: str) -> tuple[Path, dict]:
    """Run; its folder and its result."""
    config = compose(*DEEP, f"outputs_dir={place}", *words)
    return folder(config), run(config, list(words), say=silent)


def load(path: Path) -> dict:
    return checkpoint.load(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def source(place) -> Path:
    return go(place)[0]


@pytest.fixture(scope="module")
def averaged(place) -> Path:
    """A run that evaluates averages, with a loss that has weights of its own, which are averaged too."""
    return go(place, "hook=ema", "loss=adaface")[0]


# ---- rounding without training


@pytest.mark.parametrize("option", ["adaround", "adaquant"])
def test_rounding_a_checkpoint_is_rounding_at_the_end_of_the_training(option, place, source, monkeypatch):
    words = [f"quantization={option}", *ROUND[1:]]
    _, trained = go(place, *words)
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", None)  # nothing is trained
        there, rounded = go(place, *words, f"checkpoint={source}")
    assert rounded["quantization"] == trained["quantization"]
    assert rounded["quantization"]["full"] != rounded["quantization"]["deployed"]
    same = ("val_accuracy", "test_accuracy", "test_nll", "test_scaled_ece")
    assert {key: rounded["last"][key] for key in same} == {key: trained["last"][key] for key in same}
    assert rounded["steps"] == rounded["epochs"] == rounded["last"]["epoch"] == 0
    assert rounded["checkpoint"]["step"] == trained["steps"]
    for name, tensor in load(source / "last.pt")["model"].items():
        assert torch.equal(load(there / "last.pt")["model"][name], tensor)
    assert (there / "quantized.pt").exists() and (there / "result.json").exists()
    again = go(place, *words, f"checkpoint={there}")[1]  # its network is in full precision still
    assert again["quantization"] == rounded["quantization"]


def test_a_rounding_that_was_cut_off_begins_again(place, source, monkeypatch):
    def broken(*_):
        raise RuntimeError("cut off")

    words = ("quantization=ptq", "quantization.bits=3", f"checkpoint={source}")
    with monkeypatch.context() as patched:
        patched.setattr(PTQ, "fit", broken)
        with pytest.raises(RuntimeError, match="cut off"):
            go(place, *words)
    there, result = go(place, *words)
    assert result["last"]["epoch"] == 0
    assert len((there / "metrics.jsonl").read_text().splitlines()) == 1


def test_what_is_rounded_is_what_the_run_evaluated(place, averaged):
    """The average, of the model and of the loss's weights."""
    state, best = load(averaged / "last.pt"), json.loads((averaged / "result.json").read_text())
    name = "body.1.weight"
    assert not torch.equal(state["shown"]["model"][name], state["model"][name])
    _, result = go(place, "quantization=ptq", "loss=adaface", f"checkpoint={averaged}")
    for measure in ("temperature", "test_scaled_nll", "test_accuracy"):  # adaface defines no probabilities
        assert result["last"][measure] == best["last"][measure]
    assert result["checkpoint"]["left_out"] == ["mean", "std"]  # memories
    assert result["checkpoint"]["fresh"] == []


def test_the_best_weights_are_those_that_were_measured(place):
    """best_val.pt has the average of the loss's weights, as of the model's."""
    there, result = go(place, "hook=ema", "loss=adaface", "train.epochs=3", "optim.lr=0.3")
    best = load(there / "best_val.pt")
    _, rounded = go(place, "quantization=ptq", "loss=adaface", f"checkpoint={there / 'best_val.pt'}")
    assert rounded["checkpoint"]["step"] == best["step"] == result["best_val"]["step"]
    assert rounded["last"]["test_scaled_nll"] == result["best_val"]["test_scaled_nll"]


# ---- training on


@pytest.mark.parametrize("file", ["", "last.pt", "best_val.pt"])
def test_training_starts_from_the_weights(place, source, file):
    config = compose(*DEEP, f"outputs_dir={place}", "seed=3", f"checkpoint={source / file}")
    trainer = Job(config, []).trainer
    expected = load(source / (file or "last.pt"))["model"]
    model = trainer.model.state_dict()
    assert model.keys() == expected.keys()
    assert all(torch.equal(model[name], tensor) for name, tensor in expected.items())
    assert torch.equal(trainer.weights.parameters[0], expected["body.1.weight"])  # the vector that is trained
    assert trainer.count == 0 and trainer.steps > 0
    assert not any(folder(config).parent.glob(folder(config).name))  # nothing is written yet


@pytest.mark.parametrize("words", [("quantization=lsq", "quantization.begin=0.5"), ("federated=fedavg",)])
def test_quantized_training_and_federations_start_there_too(place, source, words):
    job = Job(compose(*DEEP, f"outputs_dir={place}", *words, f"checkpoint={source}"), [])
    expected = load(source / "last.pt")["model"]
    model = job.trainer.model.state_dict()
    assert all(torch.equal(model[name], tensor) for name, tensor in expected.items())
    if "federated=fedavg" in words:
        assert torch.equal(job.federated.weights.data, job.trainer.weights.data)
    else:  # the steps of weights are made for them: 2 mean|w| / sqrt(Q_P), 8 bits in the first layer
        w = expected["body.1.weight"]
        assert model["body.1.quantize_w.scale"].item() == pytest.approx(2 * w.abs().mean().item() / 127**0.5, rel=1e-6)


def test_a_run_that_was_stopped_goes_on_from_its_own_weights(place, source, monkeypatch):
    words = [*DEEP, f"outputs_dir={place}", "seed=5", f"checkpoint={source}"]
    job = Job(compose(*words), [])
    with job.locked():
        job.start()
        job.trainer.steps, whole = 3, job.trainer.steps
        job.trainer.fit()
    again = Job(compose(*words), [])
    again.resume()
    assert again.trainer.count == 3 and again.trainer.steps == whole
    assert torch.equal(again.trainer.weights.data, job.trainer.weights.data)


def test_a_losss_own_weights_come_along_where_they_fit(place, source, averaged):
    words = [*DEEP, f"outputs_dir={place}", "seed=1"]
    same = Job(compose(*words, "loss=elasticface", f"checkpoint={averaged}"), []).trainer
    assert torch.equal(same.loss.cosines.weight, load(averaged / "last.pt")["shown"]["loss"]["cosines.weight"])
    other = Job(compose(*words, f"checkpoint={averaged}"), []).trainer
    assert other.origin["left_out"] == ["mean", "std", "cosines.weight"] and other.origin["fresh"] == []
    new = Job(compose(*words, "loss=adaface", f"checkpoint={source}"), []).trainer
    assert new.origin["left_out"] == [] and new.origin["fresh"] == ["cosines.weight"]


# ---- packs


def test_runs_of_a_pack_start_from_weights_of_their_own(place, source):
    second = go(place, "seed=7")[0]
    words = [[f"outputs_dir={place}", "name=pack", f"checkpoint={path}"] for path in (source, second, source)]
    words[2].append("seed=1")
    cells = [Cell(compose(*DEEP, *more), more) for more in words]
    assert len(pack.groups([*cells, Cell(compose(*DEEP), [])])) == 2
    ended = []
    pack.together(cells, 3, silent, lambda cell, status, message: ended.append((status, message)))
    assert ended == [("done", "")] * 3
    for cell in cells:
        with_others = load(cell.folder / "last.pt")["model"]
        shutil.rmtree(cell.folder)
        run(cell.config, [], say=silent)
        for name, alone in load(cell.folder / "last.pt")["model"].items():
            torch.testing.assert_close(with_others[name], alone, rtol=1e-4, atol=1e-5)


def test_rounding_is_not_packed(place, source):
    cells = [
        Cell(
            compose(*DEEP, f"outputs_dir={place}", "name=no", "quantization=ptq", f"seed={k}", f"checkpoint={source}"),
            [],
        )
        for k in (0, 1)
    ]
    with pytest.raises(pack.Unpackable, match="nothing is trained"):
        pack.together(cells, 2, silent, silent)
    assert not (place / "no").exists()


# ---- identity


def test_the_id_depends_on_the_weights_and_not_on_where_they_lie(place, source, tmp_path):
    def of(path) -> str:
        return identity(compose(*DEEP, f"checkpoint={path}"))

    copied = tmp_path / "elsewhere"
    shutil.copytree(source, copied)
    assert of(copied) == of(source) == of(source / "last.pt")
    other = go(place, "seed=7")[0]
    assert len({of(source), of(other), identity(compose(*DEEP))}) == 3
    state = load(copied / "last.pt")
    state["seconds"] += 1
    checkpoint.save(state, copied / "last.pt")
    assert of(copied) == of(source)
    state["model"]["body.1.bias"][0] += 1e-6
    checkpoint.save(state, copied / "last.pt")
    assert of(copied) != of(source)


def test_ids_of_runs_without_a_checkpoint_are_as_ever():
    """Of the default run, as the README shows it."""
    assert identity(compose()) == "049cd0b010"


def test_a_table_takes_runs_of_before_there_was_a_checkpoint_for_the_same():
    config = compose()
    older = {key: value for key, value in config.items() if key != "checkpoint"}
    assert settings(older) == settings(config)
    assert settings(config | {"checkpoint": "outputs/a"})["checkpoint"] == "outputs/a"


# ---- what is refused


def expect(words, *texts: str) -> None:
    config = compose(*DEEP, *words)
    with pytest.raises(ConfigError) as found:
        run(config, [], say=silent)
    message = str(found.value)
    assert message.count("\n") == 0
    for text in texts:
        assert text in message


def test_no_weights_there(place, source, tmp_path):
    out = f"outputs_dir={tmp_path / 'out'}"
    expect([out, f"checkpoint={tmp_path / 'nothing'}"], "nothing: there is no such file or folder")
    expect([out, f"checkpoint={place}"], "no last.pt; give the folder of a run")
    expect([out, f"checkpoint={source / 'result.json'}"], "result.json is no checkpoint")
    torn = tmp_path / "last.pt"
    torn.write_bytes((source / "last.pt").read_bytes()[:1000])
    expect([out, f"checkpoint={torn}"], "last.pt is no checkpoint, or damaged")
    rounded = go(place, "quantization=ptq", f"checkpoint={source}")[0]
    expect([out, f"checkpoint={rounded / 'quantized.pt'}"], "quantized.pt does not hold the weights of a run")
    assert not (tmp_path / "out").exists()


def test_another_model(source, tmp_path):
    out = f"outputs_dir={tmp_path / 'out'}"
    expect(
        [out, "model.hidden=[16,12]", f"checkpoint={source}"],
        "another model (model=mlp dataset=digits)",
        "body.3.weight is (16, 16) there and is (12, 16) here, body.3.bias is (16,) there and is (12,) here",
        "head.weight is (10, 16) there and is (10, 12) here",
    )
    expect([out, "model.hidden=[16]", f"checkpoint={source}"], "body.3.weight is (16, 16) there and is not here")
    expect([out, "model.hidden=[16,16,16]", f"checkpoint={source}"], "body.5.weight is not there and is (16, 16) here")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["lsq", "dorefa"])  # with tensors of its own, and without any
def test_a_network_that_was_trained_quantized(place, option, tmp_path):
    quantized = go(place, f"quantization={option}")[0]
    out = f"outputs_dir={tmp_path / 'out'}"
    expect([out, f"checkpoint={quantized}"], f"trained quantized with quantization={option}")
    if option == "lsq":
        shutil.copy(quantized / "last.pt", tmp_path / "alone.pt")
        expect([out, f"checkpoint={tmp_path / 'alone.pt'}"], "its network was trained quantized;")


def test_logits_that_a_loss_makes_are_not_rounded_without_it(source, averaged, tmp_path):
    out = f"outputs_dir={tmp_path / 'out'}"
    expect([out, "quantization=ptq", f"checkpoint={averaged}"], "its logits are made by the loss (loss=adaface)")
    expect(
        [out, "quantization=ptq", "loss=adaface", f"checkpoint={source}"],
        "loss=adaface makes the logits with weights of its own, cosines.weight, which are not there (loss=ce)",
    )
    assert not (tmp_path / "out").exists()


def test_memories_of_a_loss_are_no_obstacle_to_rounding(place):
    remembers = go(place, "loss=elr")[0]
    result = go(place, "quantization=ptq", f"checkpoint={remembers}")[1]
    assert result["checkpoint"]["left_out"] == ["targets"]


# ---- as typed


def test_the_command_takes_a_relative_path(place, source, tmp_path):
    shutil.copytree(source, tmp_path / "outputs" / "runs" / source.name)
    done = command(*DEEP, *ROUND, f"checkpoint=outputs/runs/{source.name}", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    assert f"outputs/runs/{source.name}/last.pt, step 12" in done.stdout
    assert "nothing to train" in done.stdout and "nan" not in done.stdout


def test_start_says_what_it_read(source):
    start = Start(str(source))
    assert start.step == 12 and start.path == source / "last.pt" and start.config["choices"]["model"] == "mlp"
