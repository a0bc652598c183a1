"""`checkpoint=`: whether what is measured was trained on is said, and damaged checkpoints are one line."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from runner.core import checkpoint
from runner.core.mistake import ConfigError
from runner.dataset.digits import Digits
from runner.engine.heldout import compare
from runner.engine.run import Job, run
from runner.engine.start import Start
from runner.record.identity import folder
from tests.tiny import SMALL, compose


def silent(*_) -> None: ...


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def source(place) -> Path:
    config = compose(*SMALL, "dataset.noise=pair", "dataset.noise_rate=0.1", f"outputs_dir={place}")
    run(config, [], say=silent)
    return folder(config)


def said(there: list[str], here: list[str], where: Path, fingerprint: str = "0" * 64) -> tuple[dict, str]:
    facts, lines = compare(compose(*there), where, compose(*here), fingerprint)
    assert all("\n" not in line for line in lines)
    return facts, " | ".join(lines)


def rows(config: dict, part: str) -> set[tuple]:
    """Samples of a part of digits as the data set itself draws them."""
    node = {key: value for key, value in config["dataset"].items() if key != "_target_"}
    dataset = Digits(**node, seed=config["seed"])
    dataset.prepare()
    split = getattr(dataset, part)
    return set() if split is None else set(split.rows.tolist() if split.rows is not None else range(len(split)))


SPLITS = [
    [],
    ["seed=1"],
    ["dataset.val=0.05"],
    ["dataset.val=0.3"],
    ["dataset.val=0.0"],
    ["dataset.subset=900"],
    ["dataset.subset=900", "dataset.damage_seed=4"],
    ["dataset.subset=900", "dataset.damage_seed=4", "seed=1"],
    ["dataset.imbalance=3"],
    ["dataset.noise=symmetric", "dataset.noise_rate=0.3"],
    ["dataset.noise=symmetric", "dataset.noise_rate=0.3", "dataset.damage_seed=7"],
]


def test_held_out_is_what_the_splits_themselves_say(tmp_path):
    """Of every pair of settings: the rows that one trains on and the other validates with."""
    configs = [compose(*words) for words in SPLITS]
    trained, held = ([rows(config, part) for config in configs] for part in ("train", "val"))
    seen = set()
    for i, there in enumerate(configs):
        for j, here in enumerate(configs):
            facts, lines = compare(there, tmp_path, here, "0" * 64)
            expected = not trained[i] & held[j] if held[j] else None
            assert facts["val_held_out"] is expected, (SPLITS[i], SPLITS[j])
            assert ("validation is not held out" in " ".join(lines)) == (expected is False)
            seen.add(expected)
    assert seen == {True, False, None}


def test_what_differs_is_named(tmp_path):
    facts, text = said(["seed=3"], ["seed=4"], tmp_path)
    assert "its run was trained with seed=3 (here 4), and so on" in text and facts["trained_on"]["seed"] == 3
    assert "dataset.val=0.1 (here 0.5)" in said([], ["dataset.val=0.5"], tmp_path)[1]
    assert "dataset.subset=null (here 300)" in said([], ["dataset.subset=300"], tmp_path)[1]
    assert said([], [], tmp_path)[1] == ""
    noisy = ["dataset.noise=pair", "dataset.noise_rate=0.2"]
    text = said(noisy, [], tmp_path)[1]
    assert text.startswith(
        "checkpoint: trained with other labels: dataset.noise=pair (here none), dataset.noise_rate=0.2"
    )
    assert "drawn with another seed" in said([*noisy, "dataset.damage_seed=1"], [*noisy], tmp_path)[1]
    facts, text = said(["dataset=cifar10"], [], tmp_path)
    assert "another data set, dataset=cifar10" in text and facts["val_held_out"] is None
    text = said(["dataset=cifar10"], ["dataset=cifar10", "dataset.test_split=train", "dataset.size=8"], tmp_path)[1]
    assert text == "checkpoint: trained with dataset.size=null (here 8), dataset.test_split=test (here train)"
    facts, text = said([], [], tmp_path)
    assert facts["val_held_out"] is True and facts["trained_on"]["fingerprint"] is None
    facts, text = compare({}, tmp_path, compose(), "0" * 64)
    assert "cannot be known" in text[0] and facts["val_held_out"] is None


def test_changed_data_and_a_chain_of_checkpoints(tmp_path):
    result = tmp_path / "result.json"
    result.write_text(json.dumps({"data": {"fingerprint": "a" * 64}}))
    assert "its fingerprint was aaaaaaaaaa and is 0000000000" in said([], [], tmp_path)[1]
    assert said([], [], tmp_path, "a" * 64)[1] == ""
    again = ["checkpoint=elsewhere"]
    for known, words in ((True, ""), (False, "had samples of"), (None, "may have had samples of")):
        result.write_text(json.dumps({"checkpoint": {"val_held_out": known}}))
        facts, text = said(again, [], tmp_path)
        assert facts["val_held_out"] is known and words in text and bool(text) == bool(words)
    result.write_text("{torn")
    assert said([], [], tmp_path)[1] == ""


def test_a_run_says_it_and_its_result_keeps_it(place, source):
    words = [*SMALL, "dataset.noise=pair", "dataset.noise_rate=0.1", f"outputs_dir={place}", f"checkpoint={source}"]
    lines = []
    result = run(compose(*words, "seed=3"), [], say=lines.append)
    note = "checkpoint: validation is not held out: its run was trained with seed=0 (here 3)"
    assert any(line.startswith(f"note    {note}") for line in "\n".join(lines).splitlines())
    assert any(line.startswith(note) for line in result["notices"])
    assert result["checkpoint"]["val_held_out"] is False
    fingerprint = json.loads((source / "result.json").read_text())["data"]["fingerprint"]
    assert result["checkpoint"]["trained_on"] == {"dataset": "digits", "seed": 0, "fingerprint": fingerprint}
    same = Job(compose(*words, "train.epochs=1"), []).trainer
    assert same.origin["val_held_out"] is True
    assert not any("checkpoint" in line for line in same.notices)
    best = compose(*words[:-1], f"checkpoint={source / 'best_test.pt'}")
    assert any("chosen by its measures on test" in line for line in Job(best, []).trainer.notices)


def damaged(path: Path) -> dict:
    whole = path.read_bytes()
    state = checkpoint.load(path)
    return {
        "torn": whole[: len(whole) // 2],
        "empty": b"",
        "garbage": b"\0\xff" * 500,
        "text": b"hello",
        "cut at the end": whole[:-30],
        "a list": [1, 2],
        "a tensor": torch.ones(3),
        "other keys": {"state_dict": {}},
        "no mapping": {"model": [1], "loss": {}},
        "no tensors": {"model": {"a": 1}, "loss": {}},
        "half shown": state | {"shown": {"model": {}}},
    }


def test_damaged_checkpoints_are_one_line(source, tmp_path):
    for name, content in damaged(source / "last.pt").items():
        path = tmp_path / name / "last.pt"
        path.parent.mkdir()
        shutil.copy(source / "best_val.pt", path.parent)
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        words = r"last\.pt (is (no checkpoint|empty|damaged)|does not hold).*; beside it there is best_val"
        with pytest.raises(ConfigError, match=words):
            Start(str(path.parent))
    (tmp_path / "folder" / "last.pt").mkdir(parents=True)
    with pytest.raises(ConfigError, match="last.pt is a folder"):
        Start(str(tmp_path / "folder"))


@pytest.mark.parametrize("content", ["", "[1, 2", "- 1", "a: 1", "dataset: 3", "\0"])
def test_a_damaged_config_beside_it_is_one_line(source, tmp_path, content):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text(content)
    shutil.copy(source / "last.pt", tmp_path)
    with pytest.raises(ConfigError, match=r"\.hydra/config\.yaml is (not|damaged)") as error:
        Start(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_file_alone_starts_a_run_and_says_what_is_not_known(place, source, tmp_path):
    state = checkpoint.load(source / "last.pt")
    torch.save({"model": state["model"], "loss": {}}, tmp_path / "alone.pt")
    lines = []
    result = run(compose(*SMALL, f"outputs_dir={place}", f"checkpoint={tmp_path / 'alone.pt'}"), [], say=lines.append)
    assert "alone.pt, an unknown step" in "\n".join(lines)
    assert any("cannot be known" in line for line in result["notices"])
    assert result["checkpoint"]["val_held_out"] is None
