"""`--plan` and `--cfg job`: what would be run, and nothing is."""

import pytest
import yaml

from runner.__main__ import main
from runner.command.compose import compose
from runner.record.identity import folder
from runner.sweep import plan
from tests.command.test_words import said

TINY = ["train.steps=2", "dataset.subset=60", "model.hidden=[4]"]
__all__ = ["said"]


@pytest.fixture
def planned(capsys, tmp_path, monkeypatch):
    """The lines of a plan; nothing is written by it."""
    monkeypatch.chdir(tmp_path)

    def command(*words: str) -> list[str]:
        before = sorted(tmp_path.rglob("*"))
        assert main(list(words)) == 0
        assert sorted(tmp_path.rglob("*")) == before
        assert not plan.wanted
        return capsys.readouterr().out.splitlines()

    return command


def test_a_sweep_is_planned(planned, capsys):
    assert main(TINY) == 0
    place = folder(compose(*TINY))
    begun = folder(compose(*TINY, "seed=1"))
    begun.mkdir(parents=True)
    (begun / "last.pt").write_text("")
    capsys.readouterr()
    lines = planned("-m", "--plan", *TINY, "seed=0,1,2")
    assert lines[0] == "plan of 3 runs in outputs/runs: 1 done, 1 begun, 1 missing; nothing is run"
    assert lines[2] == f"done     outputs/runs/{place.name}  {' '.join(TINY)} seed=0"
    assert lines[3] == "begun    python -m runner train.steps=2 dataset.subset=60 'model.hidden=[4]' seed=1"
    assert lines[4] == "missing  python -m runner train.steps=2 dataset.subset=60 'model.hidden=[4]' seed=2"
    assert planned("--plan", *TINY)[2] == f"done     outputs/runs/{place.name}  {' '.join(TINY)}"


def test_an_experiment_is_planned(planned):
    lines = planned("+experiment=pezeshki2021/table1", "--plan", "seed=0")
    assert lines[0].startswith("Gradient starvation, Table 1")
    assert "2 missing; nothing is run" in lines[1]
    missing = [line for line in lines if line.startswith("missing  python -m runner ")]
    assert len(missing) == 2 and all("seed=0" in line for line in missing)


def test_cfg_of_an_experiment_is_that_of_its_first_run(planned):
    lines = planned("+experiment=pezeshki2021/table1", "--cfg", "job", "optim.lr=0.5")
    assert lines[0].startswith("# Gradient starvation") and "the first of 20 runs, dataset=colored_mnist" in lines[0]
    config = yaml.safe_load("\n".join(lines))
    assert (config["optim"]["lr"], config["dataset"]["_target_"]) == (0.5, "runner.dataset.colored_mnist.ColoredMnist")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--plan", "--again"], "--plan shows what is there, and --again runs it anew: one of them"),
        (["--plan", "-m", "hydra/sweeper=optuna", "seed=1,2"], "--plan: a sweeper that searches makes its runs up"),
        (
            ["-m", "--cfg", "job", "seed=0,1"],
            "-m and --cfg do not go together; the runs of a sweep",
        ),
        (["+experiment=pezeshki2021/table1", "--cfg", "hydra"], "of an experiment there is --cfg job"),
        (["--plan", "loss=pol"], "no loss named 'pol'. Did you mean 'poly'?"),
    ],
)
def test_what_does_not_go_together_is_one_line(words, expected, said):
    assert expected in said(*words)


def test_the_command_of_a_changed_run_is_one_that_runs_it(planned, capsys):
    assert main(TINY) == 0
    result = folder(compose(*TINY)) / "result.json"
    result.write_text(result.read_text()[:300])
    capsys.readouterr()
    words = "train.steps=2 dataset.subset=60 'model.hidden=[4]' --again=changed"
    assert planned("--plan", *TINY)[2] == f"changed  python -m runner {words}"
    assert main([*TINY, "--again=changed"]) == 0
    capsys.readouterr()
    assert planned("--plan", *TINY)[2].startswith("done ")
