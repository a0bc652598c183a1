"""Fixtures that several files of this room use."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from runner.command.listing import conf_dir
from runner.sweep import experiment, process
from tests.sweep.experiments import EXAMPLE, MINE, Stand
from tests.sweep.pooled import HOOKS


@pytest.fixture
def call(tmp_path, capsys, monkeypatch, request):
    """`call(words, stand)` -> (status, stdout, stderr); the runs are under tmp_path."""

    if "figure" not in request.node.name:  # half a second each
        monkeypatch.setattr(experiment.webpage, "available", lambda: False)
        monkeypatch.setattr(experiment, "draw", lambda made, path, heading: path.write_text(heading))

    def called(*words, run=None, mine=MINE, name="example/digits"):
        argv = [f"+experiment={name}", "--config-dir", str(mine), f"outputs_dir={tmp_path}/out", *words]
        status = experiment.main(argv, [mine, conf_dir()], run or Stand())
        return status, *capsys.readouterr()

    return called


@pytest.fixture
def edited(tmp_path):
    """A config folder with the example changed by `change(node)`, or with the text that it returns."""

    def made(change) -> Path:
        node = yaml.safe_load(EXAMPLE.read_text())
        text = change(node)
        path = tmp_path / "mine" / "experiment" / "example" / "digits.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            "# A title -- somebody\n" + (text if isinstance(text, str) else yaml.safe_dump(node, sort_keys=False))
        )
        return tmp_path / "mine"

    return made


@pytest.fixture(scope="module")
def server():
    """The one that a module's workers are forked from."""
    yield
    process.cool()


@pytest.fixture
def place(server, tmp_path, monkeypatch) -> Path:
    """An empty working directory, from which workers can import `pooled.HOOKS`; one thread for each of them."""
    (tmp_path / "pool_hooks.py").write_text(HOOKS)
    monkeypatch.delitem(sys.modules, "pool_hooks", raising=False)  # of an earlier place
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(process, "cool", lambda: None)  # the next test's workers come from the same server
    return tmp_path


@pytest.fixture
def make(tmp_path):
    """Writes one run's folder by hand: `make(seed, loss="poly", accuracy=0.9)`."""

    def made(seed, accuracy=None, *, nodes=None, typed=(), state="done", **choices) -> Path:
        folder = tmp_path / "outputs" / f"{len(list((tmp_path / 'outputs').glob('*'))):04d}"
        (folder / ".hydra").mkdir(parents=True)
        choices = {"dataset": "digits", "loss": "ce", "sharpness": "none", "optim": "sgd", **choices}
        config = {
            "name": "sweep",
            "seed": seed,
            "device": "cpu",
            "outputs_dir": str(seed),  # what is apart from the result may differ as it likes
            "train": {"epochs": 3, "workers": seed},
            "dataset": {"_target_": "x.Digits", "noise": 0.0},
            "loss": {"_target_": f"x.{choices['loss']}"},
            "sharpness": {"_target_": f"x.{choices['sharpness']}"},
            "optim": {"_target_": f"x.{choices['optim']}", "lr": 0.1},
            "logger": {"wandb": {"tags": [seed]}},
            "choices": choices | {"logger": ["wandb"] * seed},
        }
        for key, value in (nodes or {}).items():
            group, _, name = key.partition(".")
            config[group][name] = value
        (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
        (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(list(typed)))
        if state == "done":
            last = {"epoch": 3, "step": 30, "test_accuracy": accuracy, "test_nll": accuracy}
            best = {"epoch": 2, "test_accuracy": None if accuracy is None else accuracy + 0.01, "test_nll": 0.5}
            result = {"status": "done", "last": last, "best_val": None, "best_test": best}
            (folder / "result.json").write_text(json.dumps(result))
        elif state == "failed":
            error = {"status": "failed", "type": "NonFinite", "message": "loss is nan\nmore", "step": 120}
            (folder / "failed.json").write_text(json.dumps(error))
        elif state == "unfinished":
            (folder / "metrics.jsonl").write_text('{"step": 10, "epoch": 1}\n{"step": 20, "epoch": 2}\n{"st')
        return folder

    (tmp_path / "outputs").mkdir()
    return made
