"""Paths and mappings are taken as typed: alone, in sweeps, in experiments, and in Python."""

import json
import typing
from pathlib import Path

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from runner.__main__ import main
from runner.command.config import Root
from runner.command.listing import conf_dir
from runner.command.spelling import PATHS, spelled
from runner.record.identity import folder
from runner.record.origin import find
from tests.dataset.made import STREAM, TRAIN, images, load, write
from tests.tiny import SMALL, compose

FOLDERS = [conf_dir()]
ODD = [
    "/tmp/a b=c/ü",
    "~/folder",
    "~",
    "2024",
    "1e3",
    "true",
    "/tmp/plain",
    "relative/[1]",
    "/tmp/(x) {y}",
    "日本/ค",
    "/tmp/a  b ",
    "it's",
    'say "it"',
    "a\\b=c\\",
    "a\\'b",
    "#;&|!<>^`",
    "/tmp/a:b@c",
    "${oc.env:HOME}/a b=c",
]


def read(word: str, sweep: bool) -> list:
    """What Hydra makes of a word: one value, or those of a sweep."""
    (spelt,) = spelled([word], FOLDERS, sweep)
    found = OverridesParser.create().parse_override(spelt)
    if not found.is_sweep_override():
        return [found.value()]
    each = (OverridesParser.create().parse_override(f"key={text}") for text in found.sweep_string_iterator())
    return [one.value() for one in each]


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize("sweep", [False, True])
def test_a_path_is_read_as_typed(value, sweep):
    for key in PATHS:
        assert read(f"{key}={value}", sweep) == [value]
        assert read(f"+{key}={value}", sweep) == [value]
    if "/" in value:  # a key of one's own
        assert read(f"dataset.file={value}", sweep) == [value]


def test_several_paths_are_a_sweep():
    assert read("checkpoint=a=b/ü,c d/2,3", True) == ["a=b/ü", "c d/2", "3"]
    assert read("checkpoint='a,b','c=d',e=f", True) == ["a,b", "c=d", "e=f"]
    assert read("checkpoint=choice(a,b)", True) == ["a", "b"]


def test_a_path_with_a_comma_that_is_there(tmp_path):
    (tmp_path / "a,b").mkdir()
    assert read(f"data_dir={tmp_path}/a,b", False) == [f"{tmp_path}/a,b"]
    assert read(f"data_dir={tmp_path}/a,b", True) == [f"{tmp_path}/a", "b"]


@pytest.mark.parametrize(
    "word",
    [
        "seed=1",
        "train.steps=1e1",
        "optim.lr=1/2",
        "loss=ce,poly",
        "model.hidden=[8,8]",
        "+experiment=pezeshki2021/table1",
    ]
    + [
        "checkpoint=null",
        "outputs_dir='a=b'",
        'data_dir="a b"',
        "~hook",
        "data_dir=${oc.env:HOME}/x",
        "hydra/launcher=x",
    ],
)
def test_other_words_stay_as_they_are(word):
    for sweep in (False, True):
        assert spelled([word], FOLDERS, sweep) == [word]


def test_the_keys_are_those_that_a_config_has():
    texts = {key for key, hint in typing.get_type_hints(Root).items() if str in (hint, *typing.get_args(hint))}
    assert texts - {"device"} == set(PATHS)


@pytest.mark.parametrize("value", ["a b=c/ü", "it's [1]", "2024", "~/x=y"])
def test_a_run_is_where_its_path_says(value, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert compose(f"outputs_dir={value}", f"name={value.replace('/', '')}")["outputs_dir"] == value
    assert main([*SMALL, "train.epochs=1", f"outputs_dir={value}"]) == 0
    (done,) = tmp_path.glob("**/result.json")
    assert done.parent == folder(compose(*SMALL, "train.epochs=1", f"outputs_dir={value}"))
    assert json.loads(done.read_text())["status"] == "done"
    assert done.parent.parent.parent == Path(value).expanduser().absolute()
    assert find(str(Path(value) / "runs" / done.parent.name)) == done.parent / "last.pt"
    words = [*SMALL, "train.epochs=1", f"outputs_dir={value}", f"checkpoint={value}/runs/{done.parent.name}"]
    assert main(["-m", *words, "seed=0,1", "sweep.jobs=1", "hydra/launcher=basic"]) == 0
    assert len(list(tmp_path.glob("**/result.json"))) == 3


@pytest.mark.parametrize("odd", ["a b=c", "ü [1]", "x*?"])
def test_data_is_found_where_its_path_says(tmp_path, odd):
    root = tmp_path / odd
    for split in ("train", "test"):
        write(root / "data" / "tiny" / f"{split}-0.parquet", TRAIN, np.arange(40) % 3)
    assert np.array_equal(load(root).train.x.numpy(), TRAIN.transpose(0, 3, 1, 2))
    streamed = load(root, **STREAM)
    assert len(streamed.train) == 40 and images(1, (1, 1)).shape == (1, 1, 1)


# ---- mappings


TIMM = ["model=timm", "model.name=test_resnet"]


@pytest.mark.parametrize(
    "word",
    [
        "model.args={drop_rate:0.5}",
        "model.args={drop_rate: 0.5}",
        "model.args.drop_rate=0.5",
        "+model.args.drop_rate=0.5",
    ]
    + ["++model.args.drop_rate=0.5", "+model.args={drop_rate:0.5}"],
)
def test_a_mapping_whole_or_key_by_key(word):
    assert compose(*TIMM, word)["model"]["args"] == {"drop_rate": 0.5}
    assert compose(*TIMM, "model.args={drop_path_rate: 0.1}", word)["model"]["args"].get("drop_rate") == 0.5


def test_a_mapping_that_is_given_whole_replaces_what_is_there():
    for option in ("cifar10", "digits"):
        assert compose(f"dataset={option}", "dataset.asymmetric={0: 1}")["dataset"]["asymmetric"] == {0: 1}
    assert compose(*TIMM, "model.args={a: 1, b: {c: 2}}", "model.args.b.c=3")["model"]["args"] == {
        "a": 1,
        "b": {"c": 3},
    }
    assert compose("federated=fedavg", "federated.server={lr: 0.5}")["federated"]["server"]["lr"] == 0.5  # a node


@pytest.mark.parametrize("words", [["model.args={drop_rate:", "0.5}"], ["model.args=drop_rate:0.5", "model.args=b:2"]])
def test_what_a_shell_made_of_a_mapping_says_how_to_write_it(words, capsys):
    """Cut at a blank, or at a comma by a shell that expands braces."""
    assert main([*TIMM, *words]) == 2
    assert "in quotes for the shell: 'model.args={a: 1, b: 2}'" in capsys.readouterr().err


def test_mappings_of_ones_own_options(tmp_path):
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "mine.yaml").write_text("# @package hook.mine\n_target_: a.B\nmap: {a: 1}\n")
    (tmp_path / "hook" / "torn.yaml").write_text("{")
    folders = [tmp_path, conf_dir()]
    assert spelled(["hook.mine.map={b: 2}"], folders, False) == ["hook.mine.map=null", "++hook.mine.map={b: 2}"]
    assert spelled(["hook.mine.map.c=2"], folders, True) == ["++hook.mine.map.c=2"]
    assert spelled(["hook.mine.mapped=2", "hook.clip.norm=1"], folders, True) == [
        "hook.mine.mapped=2",
        "hook.clip.norm=1",
    ]


def test_a_sweep_over_a_mappings_key(capsys, tmp_path):
    words = [*TIMM, "dataset.subset=40", "train.steps=1", f"outputs_dir={tmp_path}", "hydra/launcher=basic"]
    status = main(["-m", *words, "model.args.drop_rate=0.1,x"])
    out = capsys.readouterr()
    assert status == 1 and "model.args.drop_rate=x" in out.err and "string to float: 'x'" in out.err
    assert len(list(tmp_path.glob("**/result.json"))) == 1
