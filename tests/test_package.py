"""Installed as a wheel, in another folder, with the console script; what a run imports."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.tiny import command

TINY = ["dataset.subset=100", "train.steps=2", "train.batch_size=20"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The wheel of this checkout, built and unpacked without an index."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
    subprocess.run([*install, str(folder / "site"), str(wheel)], check=True, capture_output=True)
    return folder / "site"


def test_a_wheel_carries_the_options_and_trains_in_another_folder(installed, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}

    def call(*words):
        return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)

    where = call(sys.executable, "-c", "import runner; print(runner.__file__)").stdout
    assert where.startswith(str(installed))
    assert (installed / "runner" / "conf" / "config.yaml").exists()
    assert not (installed / "tests").exists()
    listed = call(sys.executable, "-m", "runner", "--list", "loss")
    assert "poly" in listed.stdout
    script = call(str(installed / "bin" / "runner"), "loss=poly", *TINY)
    assert script.returncode == 0, script.stderr
    assert len(list((tmp_path / "outputs" / "runs").glob("*/result.json"))) == 1
    line = call(str(installed / "bin" / "runner"), "loss=pol").stderr
    assert "no loss named 'pol'. Did you mean 'poly'?" in line

    (tmp_path / "mine" / "risk").mkdir(parents=True)
    (tmp_path / "mine" / "risk" / "worst.yaml").write_text("# Worst -- somebody, 2000\n_target_: risks.Worst\n")
    (tmp_path / "risks.py").write_text(
        "from runner.risk import Risk\n"
        "class Worst(Risk):\n"
        "    def forward(self, losses, batch):\n"
        "        return losses.max()\n"
    )
    mine = call(str(installed / "bin" / "runner"), "--config-dir", "mine", "risk=worst", *TINY)
    assert mine.returncode == 0, mine.stderr


def test_a_run_imports_only_what_it_uses(tmp_path):
    (tmp_path / "mine" / "hook").mkdir(parents=True)
    (tmp_path / "mine" / "hook" / "spy.yaml").write_text("# @package hook.spy\n# Spy -- a test\n_target_: spy.Spy\n")
    (tmp_path / "spy.py").write_text(
        "import sys\nfrom runner.hook import Hook\n"
        "class Spy(Hook):\n    def step(self, run):\n"
        "        print('IMPORTED', *sorted({m.partition('.')[0] for m in sys.modules}))\n"
    )
    result = command("--config-dir", "mine", "hook=spy", *TINY, cwd=tmp_path, python=sys.executable)
    assert result.returncode == 0, result.stderr
    line = next(line for line in result.stdout.splitlines() if line.startswith("IMPORTED"))
    heavy = {"timm", "torchvision", "wandb", "datasets", "scipy", "pandas", "matplotlib", "sklearn", "PIL", "pyarrow"}
    assert not heavy & set(line.split())
