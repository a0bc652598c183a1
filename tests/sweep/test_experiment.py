"""A paper's table as one command. What trains is a stand-in that writes the results it is told, but for one test."""

import copy
import math
import shlex
import statistics
from pathlib import Path

import pytest

from runner.command.listing import conf_dir
from runner.sweep import experiment, pool
from runner.sweep.comparison import reach
from runner.sweep.display import Display
from runner.sweep.paper import Printed
from tests.sweep.experiments import FOUND, MINE, Stand, cells_of, lines_of
from tests.tiny import compose

T2, T3 = 4.302653, 3.182446  # t(0.975) with 2 and 3 degrees of freedom, from Student's table


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
