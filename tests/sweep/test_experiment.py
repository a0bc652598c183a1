"""A paper's table as one command. What trains is a stand-in that writes the results it is told, but for one test."""

import copy
import csv
import json
import math
import shlex
import statistics
from pathlib import Path

import pytest
import yaml

from runner.command.config import Sweep
from runner.command.listing import conf_dir, options, title
from runner.engine import run as running
from runner.record import again, provenance
from runner.record.files import write_json
from runner.sweep import experiment, pool
from runner.sweep.comparison import reach
from runner.sweep.display import Display
from runner.sweep.paper import Printed
from tests.conftest import ROOT
from tests.tiny import command, compose

MINE = ROOT / "tests" / "conf"
EXAMPLE = MINE / "experiment" / "example" / "digits.yaml"
T2, T3 = 4.302653, 3.182446  # t(0.975) with 2 and 3 degrees of freedom, from Student's table

# test accuracy by loss and seed: what the stand-in for training finds
FOUND = {"ce": [0.75, 0.79, 0.83], "poly": [0.78, 0.81, 0.88], "focal": [0.75, 0.80, 0.90]}


class Stand:
    """Takes the place of the pool. `fails`: (loss, seed) that fail; `stops`: after so many runs."""

    def __init__(self, found=FOUND, fails=(), stops=None, measures=None):
        self.found, self.fails, self.stops = found, fails, stops
        self.measures = measures or (
            lambda value: {"test_accuracy": value, "test_nll": None if value is None else 1 - value}
        )
        self.calls = []

    def __call__(self, cells, settings, place):
        assert isinstance(settings, Sweep)
        self.place, states, ran = place, {}, 0
        for cell in cells:
            loss, seed = cell.config["choices"]["loss"], cell.config["seed"]
            if (cell.folder / "result.json").exists():
                states[cell.folder] = "done"
            elif self.stops is not None and ran >= self.stops:
                states[cell.folder] = "stopped" if ran == self.stops else "missing"
                ran += 1
            else:
                ran += 1
                self.calls.append((loss, seed))
                cell.folder.mkdir(parents=True, exist_ok=True)
                if (loss, seed) in self.fails:
                    error = {"type": "NonFinite", "message": "loss is nan", "step": 7, "status": "failed"}
                    write_json(cell.folder / "failed.json", error)
                    states[cell.folder] = "failed"
                else:
                    last = self.measures(self.found[loss][seed])
                    write_json(cell.folder / "result.json", {"last": last, "best_test": last, "best_val": None})
                    states[cell.folder] = "done"
        return states


@pytest.fixture
def call(tmp_path, capsys, monkeypatch, request):
    """`call(words, stand)` -> (status, stdout, stderr); the runs are under tmp_path."""

    if "figure" not in request.node.name:  # half a second each
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


def lines_of(tmp_path, stem="experiment") -> dict[tuple[str, str], dict]:
    with open(tmp_path / "out" / "example_digits" / f"{stem}.csv") as file:
        return {(line["row"], line["measure"]): line for line in csv.DictReader(file)}


def cells_of(text: str, row: str, measure: str, block: int = 0) -> list[str]:
    """The cells of one line of a Markdown table."""
    found = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    return [line[2:] for line in found if line[:2] == [row, measure]][block]


def test_paper_and_ours_by_hand(call, tmp_path):
    status, out, err = call()
    assert (status, err) == (0, "")
    assert "9 runs in" in out
    assert "0 of them done before" in out
    lines = lines_of(tmp_path)
    # ours 75, 79, 83: mean 79, s = 4; paper 80 with s = 2 over 4, a standard error of 1
    ce = lines["CE", "test"]
    assert float(ce["mean"]) == pytest.approx(79)
    assert float(ce["ci95_half_width"]) == pytest.approx(T2 * 4 / math.sqrt(3), rel=1e-6)
    assert float(ce["difference"]) == pytest.approx(-1)
    # Welch: a^2 = 16 / 3, b^2 = 1, (19 / 3)^2 / ((16 / 3)^2 / 2 + 1 / 3) = 2.7563 degrees of freedom
    from scipy import stats

    freedom = (19 / 3) ** 2 / ((16 / 3) ** 2 / 2 + 1 / 3)
    assert float(ce["welch_ci95_half_width"]) == pytest.approx(
        stats.t.ppf(0.975, freedom) * math.sqrt(19 / 3), rel=1e-9
    )
    # both hold what they are compared with, but are wider than the 3.25 between the paper's 80 and 83.25
    assert (ce["paper_inside"], ce["welch_holds_0"]) == ("too wide", "too wide")
    assert (ce["paper"], ce["paper_spread"], ce["paper_kind"], ce["paper_n"]) == ("80.0", "2.0", "sd", "4")
    assert (ce["n"], ce["runs"], ce["seeds"], ce["missing"]) == ("3", "3", "0 1 2", "")
    # no spread is printed: the paper's 0.7 against 0.21 ± 0.1, and no interval of the difference
    nll = lines["CE", "NLL"]
    assert float(nll["difference"]) == pytest.approx(-0.49)
    assert (nll["welch_ci95_half_width"], nll["welch_holds_0"], nll["paper_inside"]) == ("", "", "false")
    # a standard error is taken as it is: 16 / 3 is not, the sample's s^2 is 79 / 3 about the mean 247 / 3
    poly = lines["Poly-1", "test"]
    assert float(poly["difference"]) == pytest.approx(247 / 3 - 83.25)
    deviation = statistics.stdev([78, 81, 88])
    freedom = (deviation**2 / 3 + 1) ** 2 / (deviation**4 / 9 / 2 + 1 / 3)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(deviation**2 / 3 + 1)
    assert float(poly["welch_ci95_half_width"]) == pytest.approx(half, rel=1e-9)
    # paired: 3, 2, 5 of Poly-1 (p = 0.063414, see test_table) and 0, 1, 7 of focal (t = 1.221: p = 0.3465)
    assert float(poly["paired_difference"]) == pytest.approx(10 / 3)
    assert float(poly["p"]) == pytest.approx(0.063414, rel=1e-4)
    assert float(poly["p_holm"]) == pytest.approx(2 * 0.063414, rel=1e-4)
    focal = lines["focal", "test"]
    t = (8 / 3) / (statistics.stdev([0, 1, 7]) / math.sqrt(3))
    assert float(focal["p"]) == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-6)  # exact for 2 degrees of freedom
    assert focal["p_holm"] == focal["p"]
    assert focal["paper"] == focal["difference"] == ""
    assert (ce["baseline"], ce["pairs"]) == ("CE", "")

    folder = tmp_path / "out" / "example_digits"
    text = (folder / "experiment.md").read_text()
    assert cells_of(text, "CE", "test (%)") == [
        "80.00 ± 2.00 (sd, n=4)",
        "79.00 ± 9.94",
        "3",
        "-1.00 ± 8.43",
        "too wide",
        "too wide",
    ]
    assert cells_of(text, "CE", "NLL") == ["0.7", "0.21 ± 0.099", "3", "-0.49", "no", "-"]
    assert cells_of(text, "focal", "test (%)") == ["-", "81.67 ± 18.97", "3", "-", "-", "-"]
    assert cells_of(text, "Poly-1", "test (%)", 1) == ["+3.33 ± 3.79", "3", "0.063", "0.13"]
    assert r"83.25 $\pm$ 1.00 (se, n=4)" in (folder / "experiment.tex").read_text()


def test_an_interval_that_holds_everything_is_too_wide_to_tell(call, edited, tmp_path):
    """The paper's rows are 60 apart: 79.00 ± 9.94 tells them apart, 81.67 ± 73.06 does not, and a no stays a no."""

    def change(node):
        node["columns"] = {"test": "test_accuracy"}
        for row, value in {"CE": 80.0, "Poly-1": 83.25, "focal": 23.25}.items():
            node["rows"][row]["paper"] = {"test": {"value": value}}

    half = 73.06 / T2 * math.sqrt(3) / 100  # the standard deviation of three values with that interval
    found = {**FOUND, "poly": [0.8167 - half, 0.8167, 0.8167 + half]}
    call(mine=edited(change), run=Stand(found))
    lines = lines_of(tmp_path)
    told = {row: lines[row, "test"]["paper_inside"] for row in ("CE", "Poly-1", "focal")}
    assert told == {"CE": "true", "Poly-1": "too wide", "focal": "false"}
    text = (tmp_path / "out" / "example_digits" / "experiment.md").read_text()
    assert cells_of(text, "Poly-1", "test (%)")[1:] == ["81.67 ± 73.06", "3", "-1.58", "too wide", "-"]
    assert "too wide: it does, but is wider than the paper's numbers of this measure are apart" in text


def test_of_one_printed_number_its_own_size_is_the_reach():
    one = Printed(0.7)
    assert reach([one]) == reach([one, one]) == 0.7
    assert reach([one, Printed(-0.1), Printed(0.2)]) == pytest.approx(0.8)
    assert reach([]) is reach([Printed(0.0)]) is None


def test_without_printed_numbers_a_row_is_a_line(call, edited, tmp_path):
    def change(node):
        for arm in node["rows"].values():
            arm.pop("paper", None)

    status, out, _ = call(mine=edited(change), run=Stand(fails=[("focal", 0)]))
    assert status == 1
    assert "inside" not in out
    assert "\npaper:" not in out
    text = (tmp_path / "out" / "example_digits" / "experiment.md").read_text()
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert lines[0] == ["row", "test (%)", "NLL", "n"]
    # 75, 79, 83: s = 4, half width T2 * 4 / sqrt(3) = 9.94; the stand-in's NLL is 1 - accuracy
    assert lines[2] == ["CE", "79.00 ± 9.94", "0.21 ± 0.099", "3"]
    assert ["focal", "85.00 ± 63.53", "0.15 ± 0.64", "2/3"] in lines  # 80 and 90: 12.7062 * 7.0711 / sqrt(2) = 63.53
    assert ["row", "test (%) minus CE", "p (Holm)", "NLL minus CE", "p (Holm)", "pairs"] in lines
    # 3, 2, 5 of Poly-1: p = 0.0634, doubled; 1, 7 of focal: t = 4 / 3, p = 1 - 2 / pi * atan(4 / 3) = 0.4097
    assert ["Poly-1", "+3.33 ± 3.79", "0.13", "-0.03333 ± 0.038", "0.13", "3"] in lines
    assert ["focal", "+4.00 ± 38.12", "0.41", "-0.04 ± 0.38", "0.41", "2"] in lines
    assert lines_of(tmp_path)["Poly-1", "test"]["p"].startswith("0.0634")


def test_the_figure(call, tmp_path):
    from PIL import Image

    call("seed=0,1", run=Stand(fails=[("focal", 0), ("focal", 1)]))
    with Image.open(tmp_path / "out" / "example_digits" / "experiment.png") as picture:
        assert min(picture.size) > 300
    for words, name in ((["--format", "pdf"], "pdf"), (["--format=svg"], "svg")):
        assert f"experiment.md, .tex, .csv, .{name}" in call(*words)[1]
        assert (tmp_path / "out" / "example_digits" / f"experiment.{name}").stat().st_size > 1000
    status, _, err = call("--format", "gif")
    assert (status, err) == (2, "runner: --format gif: must be one of png, pdf, svg\n")


def test_the_header_says_how(call):
    _, out, _ = call()
    assert "Poly-1 and focal loss on the digits -- an example of the format" in out
    assert "95 % confidence interval (Student t over the n seeds), measured at the last epoch; seeds 0,1,2" in out
    assert "Holm's correction" in out
    for line in ("tuning: one seed for each value", "tuning of Poly-1: epsilon of 1 and 2", "tuning of CE: not at all"):
        assert f"\n{line}\n" in out
    for line in ("assumed, not said by the paper: the learning rate", "source: nobody printed these numbers"):
        assert f"\n{line}\n" in out
    assert "selected on test" not in out
    assert "departs" not in out
    assert "missing" not in out


def test_its_lines_name_the_row(call, edited, tmp_path):
    """What the pool shows of a run is its row and its seed; where columns are of other runs, the column."""
    shown = []

    def look(cells, settings, place):
        display = Display(cells, pool.Outcome(), place)
        shown.append([display.named(cell) for cell in cells])
        return {}

    call("seed=0,1", run=look)
    other = {"metric": "test_accuracy", "overrides": ["dataset.noise_rate=0.1", "dataset.noise=symmetric"]}
    call("seed=0", run=look, mine=edited(lambda node: node["columns"].update(other=other)))
    assert shown[0] == [f"{row} seed={seed}" for row in ("CE", "Poly-1", "focal") for seed in (0, 1)]
    assert shown[1][:2] == ["CE, test seed=0", "CE, other seed=0"]


def test_selection_on_test_is_marked(call, edited, tmp_path):
    _, out, _ = call(mine=edited(lambda node: node.update(select="test")))
    assert "selected on test: optimistic" in out
    for end in ("md", "tex"):
        text = (tmp_path / "out" / "example_digits" / f"experiment.{end}").read_text()
        assert "ours, selected on test" in text
    assert {line["select"] for line in lines_of(tmp_path).values()} == {"test"}


def test_a_part_first_and_then_the_rest(call, tmp_path):
    stand = Stand()
    status, out, _ = call("seed=0,1", run=stand)
    assert status == 0
    assert sorted(stand.calls) == sorted((loss, seed) for loss in FOUND for seed in (0, 1))
    assert stand.place.parent == tmp_path / "out" / "example_digits" / ".sweeps"
    assert "missing Poly-1, test and NLL: seed 2 (not started)" in out
    assert lines_of(tmp_path)["CE", "test"]["runs"] == "3"
    assert "2/3" in out
    # one command for the rest
    words = shlex.split(out.split("what is missing, 3 runs:\n")[1].splitlines()[0])
    assert words[:5] == ["python", "-m", "runner", "--config-dir", str(MINE)]
    assert words[5:] == ["+experiment=example/digits", f"outputs_dir={tmp_path}/out", "seed=2"]
    # a row's own command is for a folder that the table reads
    assert (folder_of(shlex.split(out.split("\nPoly-1: ")[1].splitlines()[0])) / "result.json").exists()
    stand = Stand()
    status, out, _ = call(run=stand)
    assert status == 0
    assert sorted(stand.calls) == sorted((loss, 2) for loss in FOUND)
    assert "9 runs in" in out
    assert "6 of them done before" in out
    assert "  Poly-1: seeds 0,1 done before" in out
    assert "missing" not in out
    again = Stand()
    status, out, _ = call("device=cpu", "train.workers=0", run=again)  # what changes no number changes no run
    assert (status, again.calls) == (0, [])
    assert "9 of them done before" in out
    assert "departs" not in out


def folder_of(words: list[str]) -> Path:
    """Where `python -m runner --config-dir DIR overrides` would write."""
    from runner.record.identity import folder

    assert words[:5] == ["python", "-m", "runner", "--config-dir", str(MINE)]
    return folder(compose(*words[5:]))


def test_failures_are_said_and_the_table_is_made(call, tmp_path):
    status, out, err = call(run=Stand(fails=[("poly", 1), ("focal", 0), ("focal", 1), ("focal", 2)]))
    assert status == 1
    assert "missing Poly-1, test and NLL: seed 1 (failed at step 7: NonFinite: loss is nan)" in out
    assert len([line for line in err.splitlines() if line.startswith("failed: ") and "failed.json" in line]) == 4
    assert "what is missing, 4 runs:" in out
    lines = lines_of(tmp_path)
    assert (lines["Poly-1", "test"]["n"], lines["Poly-1", "test"]["seeds"]) == ("2", "0 2")
    # only seeds that both have: 3 and 5 of seeds 0 and 2
    assert (lines["Poly-1", "test"]["pairs"], float(lines["Poly-1", "test"]["paired_difference"])) == (
        "2",
        pytest.approx(4),
    )
    text = (tmp_path / "out" / "example_digits" / "experiment.md").read_text()
    assert cells_of(text, "focal", "test (%)") == ["-", "missing", "0/3", "-", "-", "-"]
    assert cells_of(text, "focal", "test (%)", 1) == ["no seed in both", "0", "-", "-"]
    again = Stand()
    status, out, _ = call(run=again)  # what failed is tried again, and nothing else
    assert status == 0
    assert sorted(again.calls) == [("focal", 0), ("focal", 1), ("focal", 2), ("poly", 1)]
    assert "missing" not in out


def test_one_seed_gives_no_interval(call, tmp_path):
    status, _, _ = call("seed=1")
    assert status == 0
    text = (tmp_path / "out" / "example_digits" / "experiment.md").read_text()
    assert cells_of(text, "CE", "test (%)") == [
        "80.00 ± 2.00 (sd, n=4)",
        "79.00 (n=1)",
        "1/3",
        "-1.00",
        "n < 2",
        "n < 2",
    ]
    assert cells_of(text, "Poly-1", "test (%)", 1) == ["+2.00 (n=1)", "1", "n < 2", "n < 2"]
    line = lines_of(tmp_path)["CE", "test"]
    assert (line["ci95_half_width"], line["paper_inside"], line["welch_holds_0"]) == ("", "", "")


def test_not_finite_is_missing(call, tmp_path):
    found = copy.deepcopy(FOUND)
    found["poly"][2] = None
    status, out, _ = call(run=Stand(found))
    assert status == 0
    assert "missing Poly-1, test: seed 2 (test_accuracy is null: not finite, or not defined by the loss)" in out
    assert "what is missing" not in out  # the run is done: to run it again would give the same
    assert lines_of(tmp_path)["Poly-1", "test"]["n"] == "2"


def test_a_measure_that_the_results_lack_is_missing(call):
    _, out, _ = call(run=Stand(measures=lambda value: {"test_accuracy": value}))
    assert "missing CE, NLL: seed 0 (no test_nll)" in out


def test_stopped_leaves_a_table_and_status_130(call):
    status, out, _ = call(run=Stand(stops=2))
    assert status == 130
    assert "2/3" in out
    assert "what is missing, 7 runs:" in out


def test_overrides_of_the_command_come_last_and_are_named(call, tmp_path):
    call()
    before = (tmp_path / "out" / "example_digits" / "experiment.md").read_bytes()
    stand = Stand()
    status, out, _ = call("train.epochs=2", "optim.lr=0.05", "device=cpu", run=stand)
    assert status == 0
    assert len(stand.calls) == 9  # other runs, in other folders
    assert "\ndeparts from the recipe: train.epochs=2 optim.lr=0.05\n" in out
    folder = tmp_path / "out" / "example_digits"
    assert (folder / "experiment.md").read_bytes() == before  # the recipe's own table is as it was
    (other,) = folder.glob("experiment-*.md")
    assert "departs from the recipe: train.epochs=2 optim.lr=0.05" in other.read_text()
    assert "departs from the recipe" in other.with_suffix(".png").read_text()  # the heading of the figure
    stand = Stand()
    _, out, _ = call("train.epochs=1", run=stand)  # what the recipe says anyway
    assert stand.calls == []
    assert "departs" not in out


def test_a_command_of_the_rest_runs_what_the_table_lacks(tmp_path, capsys):
    """With real training: the first seed in this process, the others by the printed command, in another."""

    def here(cells, settings, place):
        for cell in cells:
            running.run(cell.config, cell.overrides, say=lambda *_: None)
        return {cell.folder: "done" for cell in cells}

    words = ["+experiment=example/digits", "--config-dir", str(MINE), f"outputs_dir={tmp_path}/out"]
    assert experiment.main([*words, "seed=0"], [MINE, conf_dir()], here) == 0
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.endswith("seed=1,2"))
    result = command(*shlex.split(line)[3:], cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert experiment.main([*words, "seed=0"], [MINE, conf_dir()], here) == 0
    again = capsys.readouterr().out
    assert "3 of them done before" in again
    lines = lines_of(tmp_path)
    assert lines["CE", "test"]["seeds"] == "0 1 2"
    measured = [
        json.loads(path.read_text())["last"]["test_accuracy"]
        for path in (tmp_path / "out" / "example_digits").glob("*/result.json")
        if json.loads(path.read_text())["choices"]["loss"] == "ce"
    ]
    assert float(lines["CE", "test"]["mean"]) == pytest.approx(100 * sum(measured) / 3)
    assert "9 runs computed by" in again  # of one commit on one machine


def test_columns_may_be_of_different_runs(call, edited, tmp_path):
    def change(node):
        node["columns"] = {
            "clean": "test_accuracy",
            "noisy": {"metric": "test_accuracy", "overrides": ["dataset.noise=symmetric", "dataset.noise_rate=0.4"]},
            "noisy NLL": {"metric": "test_nll", "overrides": ["dataset.noise=symmetric", "dataset.noise_rate=0.4"]},
        }
        node["rows"]["CE"]["paper"] = {"noisy": {"value": 60, "spread": 2, "n": 4}}
        node["rows"]["Poly-1"]["paper"] = {}

    stand = Stand()
    status, out, _ = call(run=stand, mine=edited(change))
    assert status == 0
    assert len(stand.calls) == 18  # of the three columns, two are of the same runs
    assert "60.00 ± 2.00 (± of what is not said, n=4)" in out
    line = lines_of(tmp_path)["CE", "noisy"]
    assert (line["paper_kind"], line["welch_ci95_half_width"]) == ("", "")
    assert line["difference"] != ""


def test_what_follows_the_seed_is_composed_for_every_seed(edited):
    def change(node):
        node["recipe"].append("dataset.damage_seed=${seed}")

    plan = experiment.Plan(["experiment=example/digits"], [edited(change), conf_dir()])
    for cells in plan.cells.values():
        for seed, cell in cells.items():
            assert cell.config["seed"] == cell.config["dataset"]["damage_seed"] == seed
    assert plan.cells["CE", "test"][1].config["choices"]["loss"] == "ce"
    assert plan.cells["Poly-1", "NLL"][2].config["loss"]["epsilon"] == 2.0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["seed=7"], "seed=7: the experiment's seeds are 0,1,2"),
        (["seed=a"], "seed=a: the experiment's seeds are 0,1,2"),
        (["seed="], "seed=: the experiment's seeds are 0,1,2"),
        (["seed=range(5)"], "seed=range(5): the experiment's seeds are 0,1,2"),
        (["-m"], "an experiment is a sweep of its own: leave -m out"),
        (["--cfg", "hydra"], "of an experiment there is --cfg job, the config of its first run"),
        (["hydra/launcher=joblib"], "'hydra/launcher=joblib' does not go with an experiment"),
        (["+experiment=example/other"], "one experiment at a time"),
        (["optim.lrr=1"], "row 'CE': no key 'optim.lrr'. Did you mean 'optim.lr'?"),
        (["optim.lr=-1"], "row 'CE': optim.lr=-1: must be a number at least 0"),
        (["optim.lr=0.1,0.2"], "'optim.lr=0.1,0.2' is several values"),
        (["loss=ce"], "row 'Poly-1': "),
        (["nonsense"], "'nonsense' is not an override"),
    ],
)
def test_mistakes_in_the_command_are_one_line(call, tmp_path, words, expected):
    stand = Stand()
    status, out, err = call(*words, run=stand)
    assert (status, out, stand.calls) == (2, "", [])
    assert expected in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_paths_and_mappings_are_taken_as_typed(call, edited, tmp_path):
    """In the command and in the file, whose rows' mappings take the place of what is there."""

    def change(node):
        node["recipe"] = ["dataset=cifar10", "dataset.asymmetric={1: 0}", "model=timm", "model.args.drop_rate=0.5"]

    stand = Stand()
    status, out, err = call(f"outputs_dir={tmp_path}/it's b=c/ü", mine=edited(change), run=stand)
    assert (status, err) == (0, "") and len(stand.calls) == 9
    assert (tmp_path / "it's b=c" / "ü" / "example_digits" / "experiment.csv").exists()
    made = experiment.Plan(["+experiment=example/digits", "dataset.asymmetric={2: 3}"], [edited(change), conf_dir()])
    config = made.asked[0].config
    assert config["dataset"]["asymmetric"] == {2: 3} and config["model"]["args"] == {"drop_rate": 0.5}


def test_an_experiment_that_is_none(call, capsys, tmp_path):
    status, _, err = call(name="example/digit")
    assert status == 2
    assert "no experiment 'example/digit'. Did you mean 'example/digits'?" in err
    assert call(name="")[0] == 2
    assert experiment.main(["+experiment=a/b"], [tmp_path / "nowhere", conf_dir()], Stand()) == 2
    assert "there is no such folder" in capsys.readouterr().err


def test_torchrun_is_refused(call, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, _, err = call()
    assert status == 2
    assert "leave torchrun out" in err


def row(name: str, **changes):
    return lambda node: node["rows"][name].update(changes)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda node: node.update(select="lst"), "select=lst: must be one of last, val, test"),
        (lambda node: node.update(selct="last"), "no key 'experiment.selct'. Did you mean 'experiment.select'?"),
        (lambda node: node.pop("seeds"), "experiment.seeds is missing"),
        (lambda node: node.update(seeds=[]), "experiment.seeds is empty"),
        (lambda node: node.update(seeds=[0, 1, 0]), "a seed stands there twice"),
        (lambda node: node.update(seeds=[-1]), "each element is an integer at least 0"),
        (lambda node: node.update(seeds=3), "experiment.seeds=3: must be a list"),
        (lambda node: node.update(rows={}), "experiment.rows is empty"),
        (lambda node: node.update(baseline="SGD"), "no row 'SGD'. There are: CE, Poly-1, focal"),
        (lambda node: node["columns"].update(test="test_acc"), "no metric 'test_acc'."),
        (lambda node: node["columns"].update(x={"metrc": "test_nll"}), "Did you mean 'experiment.columns.x.metric'?"),
        (lambda node: node.update(select="val", recipe=[*node["recipe"], "dataset.val=0"]), "needs a validation split"),
        (lambda node: node.update(recipe=[*node["recipe"], "seed=3"]), "'seed=3' is no override for a recipe"),
        (lambda node: node.update(recipe=["optim.lr=0.1,0.2"]), "'optim.lr=0.1,0.2' is several values"),
        (lambda node: node.update(name="a/b"), "name=a/b"),
        (row("CE", tuned=None), "tuned=null: must be a string"),
        (lambda node: node["rows"].update(CE={}), "experiment.rows.CE.tuned is missing"),
        (row("CE", overides=[]), "Did you mean 'experiment.rows.CE.overrides'?"),
        (row("CE", overrides=["loss=c"]), "row 'CE': no loss named 'c'."),
        (row("focal", overrides=["loss=ce"]), "row 'focal': with these overrides its runs are those of row 'CE'"),
        (row("CE", paper={"tst": {"value": 1}}), "no column 'tst'. Did you mean 'test'?"),
        (row("CE", paper={"test": 0.7}), "write {value: 0.7}"),
        (row("CE", paper={"test": {"value": "abc"}}), "paper.test.value=abc: must be a number"),
        (row("CE", paper={"test": {"spread": 1}}), "paper.test.value is missing"),
        (row("CE", paper={"test": {"value": 1, "kind": "std"}}), "kind=std: must be one of sd, se, ci95"),
        (lambda node: "a: b: c\n", "mapping values are not allowed here"),
        (lambda node: "seeds: [0]\nseeds: [1]\n", "duplicate key seeds"),
        (lambda node: "- a\n", "it is no mapping"),
    ],
)
def test_mistakes_in_the_file_are_one_line(call, edited, tmp_path, change, expected):
    stand = Stand()
    status, out, err = call(run=stand, mine=edited(change))
    assert (status, out, stand.calls) == (2, "", [])
    assert expected in err
    assert err.count("\n") == 1
    assert "example/digits" in err
    assert not (tmp_path / "out").exists()


def test_rows_may_be_named_by_numbers(call, edited):
    def change(node):
        node["rows"] = {1: node["rows"]["CE"], 2.5: node["rows"]["Poly-1"]}
        node["baseline"] = "1"

    status, out, _ = call(mine=edited(change))
    assert status == 0
    assert "minus 1:" in out


PACKAGED = sorted((conf_dir() / "experiment").glob("*/*.yaml"))


@pytest.mark.parametrize("path", PACKAGED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_packaged_experiments_compose_and_name_their_source(path):
    what, dashes, source = title(path).partition(" -- ")
    assert what and dashes and source, "the first line: # Title -- Authors, venue year, arXiv:id"
    plan = experiment.Plan([f"+experiment={path.parent.name}/{path.stem}"], [conf_dir()])
    assert len(plan.asked) >= len(plan.experiment.rows) * len(plan.experiment.seeds)
    assert plan.experiment.sources, "where the numbers and the recipe come from"


def test_options_of_the_users_folder_are_found(call, edited):
    mine = edited(row("focal", overrides=["loss=mine"]))
    (mine / "loss").mkdir()
    (mine / "loss" / "mine.yaml").write_text("# Mine -- a test\n_target_: runner.loss.focal.Focal\ngamma: 3.0\n")
    assert "mine" in options("loss", [mine, conf_dir()])
    plan = experiment.Plan(["+experiment=example/digits"], [mine, conf_dir()])
    assert plan.cells["focal", "test"][0].config["loss"]["gamma"] == 3.0


def test_the_later_of_recipe_column_row_and_command_wins(edited):
    def change(node):
        node["recipe"] += ["optim.momentum=0.1", "train.accumulate=1"]
        node["columns"]["NLL"] = {"metric": "test_nll", "overrides": ["optim.momentum=0.2", "optim.lr=0.2"]}
        node["rows"]["CE"]["overrides"] += ["optim.momentum=0.3"]

    def settings(*words):
        plan = experiment.Plan(["+experiment=example/digits", *words], [edited(change), conf_dir()])
        cells = (plan.cells[row, column][0] for row in ("CE", "focal") for column in ("test", "NLL"))
        return [(cell.config["optim"]["momentum"], cell.config["optim"]["lr"], cell.config["name"]) for cell in cells]

    name = "example_digits"
    assert settings() == [(0.3, 0.1, name), (0.3, 0.2, name), (0.1, 0.1, name), (0.2, 0.2, name)]
    assert settings("optim.momentum=0.4", "name=other") == [
        (0.4, 0.1, "other"),
        (0.4, 0.2, "other"),
        (0.4, 0.1, "other"),
        (0.4, 0.2, "other"),
    ]


def test_runs_of_other_code_are_left_out_and_run_anew_where_the_user_says_so(call, tmp_path, monkeypatch):
    class Made(Stand):
        """Its results say by which code they are; old ones of Poly-1 by another than there is."""

        def __init__(self, old=False):
            super().__init__()
            self.old = old

        def __call__(self, cells, settings, place):
            states = super().__call__(cells, settings, place)
            for cell in cells:
                made = provenance.code(cell.config)
                if self.old and "runner.loss.poly" in made["sources"]:
                    made["sources"]["runner.loss.poly"] |= {"text": "another", "code": "another"}
                path = cell.folder / "result.json"
                write_json(path, {"made": made} | json.loads(path.read_text()))
            return states

    call(run=Made(old=True))
    stand = Made()
    status, out, err = call(run=stand)
    assert (status, stand.calls) == (1, [])
    assert "poly.py has changed since" in err
    assert "--again=changed" in err
    assert cells_of((tmp_path / "out/example_digits/experiment.md").read_text(), "Poly-1", "test (%)")[1] == "missing"
    monkeypatch.setattr(again, "wanted", again.CHANGED)
    status, out, _ = call(run=stand)
    assert (status, stand.calls) == (0, [("poly", seed) for seed in range(3)])
    assert "what was there of 3 runs" in out
    assert len(list((tmp_path / "out/example_digits/.earlier").iterdir())) == 3
