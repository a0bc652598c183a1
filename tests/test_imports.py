"""What a run imports until its first step: nothing heavy that it does not use."""

import json
import subprocess
import sys

import pytest

from tests.tiny import ROOT

HEAVY = {"torchvision", "timm", "datasets", "pyarrow", "PIL"}  # data and models
HEAVY |= {"wandb", "tensorboard", "matplotlib", "pandas", "scipy", "sklearn", "lightning"}
SPY = """\
import json
import os
import sys
from runner.hook import Hook
class Spy(Hook):
    def step(self, run):
        print(json.dumps(sorted(sys.modules)), flush=True)
        os._exit(0)
"""
OPTION = """\
# @package hook.spy
# Spy -- tells what is imported after the first step
_target_: spy.Spy
"""


@pytest.fixture(scope="module")
def modules(tmp_path_factory) -> set[str]:
    """Every module of `python -m runner` with all defaults, after its first step."""
    folder = tmp_path_factory.mktemp("imports")
    (folder / "spy.py").write_text(SPY)
    (folder / "mine" / "hook").mkdir(parents=True)
    (folder / "mine" / "hook" / "spy.yaml").write_text(OPTION)
    words = ["-m", "runner", "--config-dir", "mine", "hook=spy", "device=cpu"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_a_run_imports_nothing_heavy(modules):
    assert {"torch", "hydra", "runner.engine.trainer", "runner.dataset.digits", "runner.optim.sgd"} <= modules
    assert {name.partition(".")[0] for name in modules}.isdisjoint(HEAVY)


def test_a_run_imports_only_what_it_names(modules):
    """Of the options, those that the run selected and no others."""
    files = {name for group in ("model", "loss", "optim", "dataset", "augment") for name in _files(group)}
    selected = {"runner.model.mlp", "runner.loss.ce", "runner.optim.sgd", "runner.dataset.digits"}
    assert selected <= files
    shared = {"runner.dataset.loader", "runner.dataset.damage", "runner.dataset.check", "runner.model.shapes"}
    assert (modules & files) - shared == selected


def _files(group: str) -> list[str]:
    folder = ROOT / "runner" / group
    return [f"runner.{group}.{path.stem}" for path in folder.glob("*.py") if path.stem != "__init__"]
