"""`--plan` and `--cfg job`: what would be run, and nothing is."""

import re

import pytest
import yaml

from runner.__main__ import main
from runner.command.compose import compose
from runner.engine.trainer import Trainer
from runner.record.identity import folder
from runner.sweep import cells, estimate, plan
from runner.sweep.estimate import span, volume
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


def test_a_plan_says_how_long_the_rest_takes_from_what_was_measured(planned, capsys, tmp_path, monkeypatch):
    lines = planned("-m", "--plan", *TINY, "seed=0,1", "loss=ce,poly")
    (head,) = (line for line in lines if line.startswith("estimate on "))
    assert re.search(r"\(cpu\), \d+ runs? at a time: [\d.]+ m?s, [\d.]+ [KM]iB of [\d.,]+ [GT]iB that are free$", head)
    kinds = lines[lines.index(head) + 1 :]
    assert len(kinds) == 2 and "loss=ce, ...: 2 steps of" in kinds[0] and "loss=poly, ...: 2 steps of" in kinds[1]
    assert all(line.startswith("  2 x ") and line.endswith(", measured") for line in kinds)
    assert main([*TINY, "loss=poly"]) == 0
    capsys.readouterr()
    (kind,) = planned("-m", "--plan", *TINY, "seed=0,1", "loss=poly")[-1:]
    assert kind.startswith("  1 x ") and kind.endswith(": as 1 run before")


def test_what_was_not_measured_is_not_estimated(planned, monkeypatch, tmp_path):
    monkeypatch.setenv("RUNNER_DATA", str(tmp_path))
    lines = planned("--plan", "dataset=mnist", f"data_dir={tmp_path}")
    assert not any(line.startswith("estimate") for line in lines)
    assert "no estimate: " in lines[-1]
    assert planned("--plan", "federated=fedavg")[-1].endswith(
        "no estimate: a federation, and none of its kind has been finished here"
    )


def test_times_and_sizes_as_people_say_them():
    assert [span(t) for t in (0.0004, 0.463, 1.2, 75, 5400, 100_000, 10**7)] == [
        *["0.4 ms", "463 ms", "1.2 s", "1.2 min", "1.5 h", "28 h", "116 days"]
    ]
    assert [volume(n) for n in (500, 5 << 20, 118 << 30)] == ["0.5 KiB", "5.0 MiB", "118 GiB"]


def test_an_estimate_is_of_whole_batches_whatever_part_was_measured(monkeypatch):
    """With a clock by which a sample takes a second, of a step as of an evaluation: 42 steps of 64 samples, and four
    evaluations of 144 and 359, two of them at the end."""
    seen = []
    monkeypatch.setattr(Trainer, "step", lambda run, batch: seen.append(len(batch)))
    monkeypatch.setattr(Trainer, "evaluate", lambda run, split: seen.append(len(split)))
    monkeypatch.setattr(estimate, "_time", lambda what, run, fewest=2: [what(), seen[-1]][1])
    cell = cells.Cell(compose("train.batch_size=64", "train.epochs=2"), [])
    whole = estimate._measured(cell)
    monkeypatch.setattr(estimate, "MOST", 1.0)
    part = estimate._measured(cell)
    assert "from 8 of its 64 samples" in part.how and "from" not in whole.how
    assert whole.seconds == pytest.approx(42 * 64 + 4 * (144 + 359)) == pytest.approx(part.seconds)
    assert part.bytes == whole.bytes > 4 * 2 * 9610
