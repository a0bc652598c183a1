"""Sweepers that search: what they are told of a run is its error on validation, as a number that they may minimise."""

import json
import math
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from runner.core.mistake import ConfigError
from runner.sweep.objective import Failed, best, objective, searchable
from tests.conftest import ROOT
from tests.tiny import SMALL, command

# what every such sweeper does: launch, take `return_value` (which raises what a failed job raised), write what was best
SEARCHER = """\
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from omegaconf import OmegaConf
from tests.conftest import ROOT


class Searcher(Sweeper):
    def setup(self, *, hydra_context, task_function, config):
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(hydra_context, task_function, config)

    def sweep(self, arguments):
        trials = [[*arguments, f"optim.lr={lr}"] for lr in (0.001, 0.1)]
        values = [float(job.return_value) for job in self.launcher.launch(trials, initial_job_idx=0)]
        found = {"best_params": {"optim.lr": (0.001, 0.1)[values.index(min(values))]}, "best_value": min(values)}
        OmegaConf.save(OmegaConf.create(found), f"{self.config.hydra.sweep.dir}/optimization_results.yaml")


ConfigStore.instance().store(group="hydra/sweeper", name="tiny", node={"_target_": "hydra_plugins.tiny.Searcher"})
"""


@pytest.fixture(scope="module")
def plugins(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "hydra_plugins").mkdir()
    (folder / "hydra_plugins" / "tiny.py").write_text(SEARCHER)
    return folder


def searched(*words, plugins, cwd):
    env = {"PYTHONPATH": f"{ROOT}:{plugins}"}
    return command("-m", "hydra/sweeper=tiny", "device=cpu", "sweep.jobs=1", *SMALL, *words, cwd=cwd, env=env)


def test_a_sweeper_is_told_the_error_on_validation(plugins, tmp_path):
    found = searched(plugins=plugins, cwd=tmp_path)
    assert (found.returncode, found.stderr) == (0, "")
    (path,) = tmp_path.glob("outputs/runs/.sweeps/*/optimization_results.yaml")
    results = [json.loads(path.read_text())["last"] for path in tmp_path.glob("outputs/runs/*/result.json")]
    assert len(results) == 2
    errors = [1 - last["val_accuracy"] for last in results]
    assert f"the smallest error on validation: {min(errors):.4g} with optim.lr=0.1" in found.stdout
    assert OmegaConf.load(path).best_value == pytest.approx(min(errors), abs=1e-12)


@pytest.mark.slow
def test_a_run_that_fails_ends_the_search_in_one_line(plugins, tmp_path):
    words = ["dataset=diabetes", "loss=cs_ib", "optim.weight_decay=1e30", "hydra/launcher=basic"]
    found = searched(*words, plugins=plugins, cwd=tmp_path)
    assert found.returncode == 1
    assert "Traceback" not in found.stderr
    assert found.stderr.splitlines()[-1].startswith("runner: ")
    assert "not done, NonFinite" in found.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "last, error",
    [
        ({"val_accuracy": 0.75, "val_nll": None, "test_accuracy": 0.1}, 0.25),  # classes and several labels
        ({"val_mae": 3.5, "val_rmse": 4.0, "test_mae": 1.0}, 3.5),
        ({"val_accuracy": None, "test_accuracy": 0.5}, None),
        ({"test_mae": 3.5}, None),
        (None, None),
    ],
)
def test_the_objective_by_hand(last, error, tmp_path):
    if last is not None:
        (tmp_path / "result.json").write_text(json.dumps({"last": last}))
    if error is not None:
        assert math.isclose(objective(tmp_path), error)
        return
    with pytest.raises(
        Failed, match="not done, so there is nothing" if last is None else "it has no measure of the validation split"
    ):
        objective(tmp_path)


def test_without_a_validation_split_there_is_no_search():
    searchable({"dataset": {"val": 0.1}})
    searchable({"dataset": {}})  # it comes with one of its own
    with pytest.raises(ConfigError, match="dataset.val=0"):
        searchable({"dataset": {"val": 0}})


def test_what_a_search_found(tmp_path):
    assert best(tmp_path) == ""
    path = tmp_path / "optimization_results.yaml"
    path.write_text("name: optuna\nsolutions: []\n")
    assert best(tmp_path) == f"the search's results: {path}"
    path.write_text("best_evaluated_params: {loss: poly}\nbest_value: 0.25\n")  # nevergrad's word for it
    assert best(tmp_path) == f"the smallest error on validation: 0.25 with loss=poly  ({path})"
