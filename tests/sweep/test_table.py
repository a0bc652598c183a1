import csv
import io
import json
import math
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from runner.sweep.missing import remaining
from runner.sweep.report import COLOURS, Panel, Report, draw
from runner.sweep.runs import runs_under
from runner.sweep.statistics import estimate, holm, paired, welch
from runner.sweep.table import main, save, table
from tests.conftest import ROOT

# Extra hours of sleep of ten patients under two drugs: Cushny and Peebles 1905, in Student's paper, Biometrika 1908
DRUG_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
DRUG_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def test_paired_difference_of_students_own_data():
    """R's t.test(paired = TRUE) on its data set `sleep`: t = -4.0621, df = 9, p-value = 0.002833, the 95 per cent
    interval -2.4598858 to -0.7001142."""
    found = paired(dict(enumerate(DRUG_1)), dict(enumerate(DRUG_2)))
    assert found.n == 10
    assert found.mean == pytest.approx(-1.58)
    assert found.mean / found.error == pytest.approx(-4.0621, abs=5e-5)
    assert found.p == pytest.approx(0.002833, abs=5e-7)
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((-2.4598858, -0.7001142), abs=5e-8)
    assert not found.holds(0)
    assert found.holds(-0.71)
    assert not found.holds(-0.70)


def test_welch_on_students_own_data():
    """R's t.test: df = 17.776, the 95 per cent interval of the difference -3.3654832 to 0.2054832."""
    half = welch(estimate(DRUG_1), statistics.stdev(DRUG_2) / math.sqrt(10), 10)
    assert statistics.fmean(DRUG_1) - statistics.fmean(DRUG_2) == pytest.approx(-1.58)
    assert half == pytest.approx((0.2054832 + 3.3654832) / 2, abs=1e-7)
    assert welch(estimate([1.0]), 0.1, 10) is None
    assert welch(estimate([1.0, 2.0]), 0.1, 1) is None
    assert welch(estimate([1.0, 1.0]), 0.0, 5) == 0


def test_statistics_agree_with_scipy_stats():
    from scipy import stats

    draw = np.random.default_rng(0)
    for n in (2, 3, 10):
        a, b = draw.normal(0.9, 0.1, n).tolist(), draw.normal(0.8, 0.2, n).tolist()
        found, expected = paired(dict(enumerate(a)), dict(enumerate(b))), stats.ttest_rel(a, b)
        assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
        interval = expected.confidence_interval(0.95)
        assert (found.mean - found.half, found.mean + found.half) == pytest.approx(tuple(interval), rel=1e-9)
        low, high = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
        half = welch(estimate(a), statistics.stdev(b) / math.sqrt(n), n)
        assert half == pytest.approx((high - low) / 2, rel=1e-9)


def test_holm_on_a_worked_example():
    # p = 0.01, 0.04, 0.03, 0.005: sorted 0.005 * 4, 0.01 * 3, 0.03 * 2, 0.04 * 1, none below the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []
    assert holm([None, 0.01, None, 0.04]) == [None, 0.02, None, 0.04]  # what is no test does not count
    assert holm([0.01, 0.01, 0.01]) == pytest.approx([0.03, 0.03, 0.03])


def test_too_few_and_equal_values_have_no_p():
    assert estimate([]) is None
    one = estimate([0.3])
    assert (one.mean, one.half, one.p, one.n, one.holds(0.3)) == (0.3, None, None, 1, None)
    equal = paired({0: 0.9, 1: 0.8, 2: 0.7}, {0: 0.8, 1: 0.7, 2: 0.6})  # 0.1 each, but for rounding
    assert (equal.half, equal.p, equal.n) == (0.0, None, 3)
    assert paired({0: 0.9, 1: 0.5}, {1: 0.25, 2: 0.1}).mean == 0.25
    assert paired({0: 0.9}, {1: 0.25}) is None


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


def rows(made) -> list[list[str]]:
    return made.cells()[1:]


def test_mean_and_interval_by_hand(make):
    folders = [make(seed, value) for seed, value in enumerate([0.01, 0.02, 0.03, 0.04])]
    made = table(folders)
    (row,) = made.rows
    # mean 2.5, s = sqrt(5 / 3) = 1.290994, t(0.975, 3) = 3.182446 (Student's table), over sqrt(4)
    assert row.mean == pytest.approx(0.025)
    assert row.half_width == pytest.approx(0.01 * 3.182446 * 1.290994 / 2, rel=1e-5)
    assert made.by == []
    assert rows(made) == [["2.50 ± 2.05", "4", "0,1,2,3"]]
    raw = table(folders, metric="test_nll")
    assert rows(raw) == [["0.025 ± 0.021", "4", "0,1,2,3"]]
    (line,) = csv.DictReader(io.StringIO(made.csv()))
    assert float(line["mean"]) == pytest.approx(2.5)
    assert float(line["ci95_half_width"]) == pytest.approx(2.054258, rel=1e-5)
    assert (line["unit"], line["n"], line["runs"], line["seeds"], line["missing"]) == ("%", "4", "4", "0 1 2 3", "")
    assert (line["metric"], line["select"]) == ("test_accuracy", "last")


def test_what_is_deployed_is_the_file_of_a_quantized_run_and_else_the_network(make):
    folders = [make(seed, 0.9) for seed in (0, 1)]
    for folder, found in zip(folders, (0.7, 0.8), strict=True):
        result = json.loads((folder / "result.json").read_text())
        result["quantization"] = {"deployed": {"test_accuracy": found}, "bits_per_weight": 4.5}
        (folder / "result.json").write_text(json.dumps(result))
    assert table(folders, metric="deployed_test_accuracy").rows[0].values == [0.7, 0.8]
    assert table(folders, metric="bits_per_weight").rows[0].values == [4.5, 4.5]
    plain = [make(2, 0.9)]
    assert table(plain, metric="deployed_test_accuracy").rows[0].values == [0.9]
    assert table(plain, metric="bits_per_weight").rows[0].values == [32.0]


def test_two_values_and_one(make):
    # n = 2: t(0.975, 1) = 12.7062, s / sqrt(2) = |a - b| / 2
    two = table([make(0, 0.90), make(1, 0.92)])
    assert two.rows[0].half_width == pytest.approx(12.7062 * 0.01, rel=1e-5)
    one = table([make(0, 0.9)])
    assert one.rows[0].half_width is None
    assert rows(one) == [["90.00 (n=1)", "1", "0"]]


def test_groups_by_what_varies(make):
    folders = [
        make(seed, 0.1 * seed + (0.5 if loss == "ce" else 0.6) + (0.05 if optim == "sam" else 0),
             loss=loss, optim=optim, sharpness="sam" if optim == "sam" else "none", typed=[f"optim={optim}", "seed=0"],
             nodes={"sharpness.rho": 0.05} if optim == "sam" else None)
        for loss in ("poly", "ce")
        for optim in ("sgd", "sam")
        for seed in (1, 0)
    ]  # fmt: skip
    made = table(folders)
    # optim=sam also sets the sharpness and its rho: one column is enough, and it is the one that was typed
    assert sorted(made.by) == ["loss", "optim"]
    found = {(row.keys["loss"], row.keys["optim"]): row.mean for row in made.rows}
    assert found == pytest.approx(
        {("ce", "sgd"): 0.55, ("ce", "sam"): 0.60, ("poly", "sgd"): 0.65, ("poly", "sam"): 0.70}
    )
    assert all(row.seeds == [0, 1] for row in made.rows)


def test_keys_in_nodes_that_not_all_runs_have(make):
    folders = [make(seed, 0.5) for seed in (0, 1)]
    for rho in (0.1, 0.05):
        folders += [make(seed, 0.5 + rho, sharpness="sam", nodes={"sharpness.rho": rho}) for seed in (0, 1)]
    made = table(folders)
    assert made.by == ["sharpness", "sharpness.rho"]
    assert [line[:2] for line in rows(made)] == [["none", "-"], ["sam", "0.05"], ["sam", "0.1"]]
    by_rho = table(folders, by=["sharpness.rho"])
    assert [line[0] for line in rows(by_rho)] == ["-", "0.05", "0.1"]
    assert by_rho.notes == []


def test_numbers_sort_as_numbers(make):
    made = table([make(0, 0.5, nodes={"optim.lr": lr}) for lr in (10.0, 9.0, 0.001)])
    assert [line[0] for line in rows(made)] == ["0.001", "9", "10"]


def test_what_is_interpolated_from_the_seed_is_no_column(make):
    made = table([make(seed, 0.5, nodes={"dataset.noise": seed}) for seed in (0, 1, 2)])
    assert made.by == []
    typed = table([make(seed, 0.5, nodes={"dataset.noise": seed}, typed=[f"dataset.noise={seed}"]) for seed in (0, 1)])
    assert typed.by == ["dataset.noise"]


def test_pooled_rows_say_so(make):
    folders = [make(seed, 0.5, loss=loss, optim=optim) for seed, (loss, optim) in enumerate(PAIRS)]
    pooled = table(folders, by=["loss"])
    assert [[line[0], *line[-2:]] for line in rows(pooled)] == [["ce", "2/8", "0,1"], ["poly", "2/8", "2,3"]]
    assert "differ in optim" in pooled.notes[0]
    assert table(folders, by=["loss", "optim"]).notes == []


def test_rows_that_average_over_settings_are_refused(make):
    """A seed that stands twice in a row is two settings under one name."""
    folders = [make(seed, 0.5, loss=loss, optim=optim) for seed in (0, 1) for loss, optim in PAIRS]
    with pytest.raises(ValueError, match="--by loss: a row would hold a seed several times, its runs differ in optim"):
        table(folders, by=["loss"])
    assert [line[-2:] for line in rows(table(folders, by=["loss", "optim"]))] == [["2", "0,1"]] * 4


def test_the_default_folder_makes_no_table_of_unlike_runs(make, tmp_path, capsys):
    """Typed with other keys they are other questions; a sweep's runs are typed alike, and a name is a statement."""
    folders = [make(0, 0.5, typed=["loss=ce", "seed=0"]), make(1, 0.6, typed=["loss=ce"], loss="ce")]
    folders += [make(0, 0.7, typed=["loss=poly"], loss="poly")]
    (tmp_path / "outputs").rename(tmp_path / "runs")
    main([str(tmp_path / "runs")])
    assert f"saved as {tmp_path}/runs/table.md, .tex, .csv, .png" in capsys.readouterr().out
    (tmp_path / "outputs").mkdir()
    make(0, 0.7, typed=["optim=adam"], optim="adam").rename(tmp_path / "runs" / "other")
    with pytest.raises(SystemExit):
        main([str(tmp_path / "runs")])
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "these differ in 2 ways ('loss', 'optim')" in error
    main([str(tmp_path / "runs"), "--by", "loss,optim"])
    (tmp_path / "runs").rename(tmp_path / "mine")
    main([str(tmp_path / "mine")])


def test_notices_stand_below_once(make):
    folders = [make(seed, 0.5) for seed in range(3)]
    for folder, lines in zip(folders, (["a", "b"], ["a"], ["a", "a"]), strict=True):
        result = json.loads((folder / "result.json").read_text()) | {"notices": lines}
        (folder / "result.json").write_text(json.dumps(result))
    assert table(folders).remarks() == ["note: a", "note: b  (1 of 3 runs)"]


PAIRS = [("ce", "sgd"), ("ce", "adam"), ("poly", "sgd"), ("poly", "adam")]


def test_missing_runs_are_shown(make, tmp_path):
    folders = [make(seed, 0.5) for seed in range(5)]
    folders += [make(0, 0.4, loss="poly"), make(1, 0.6, loss="poly")]
    folders += [make(2, loss="poly", state="failed"), make(3, loss="poly", state="unfinished")]
    folders += [make(seed, loss="focal", state="failed") for seed in (0, 1)]
    folders += [make(2, loss="focal"), make(3, loss="focal", state="begun")]
    made = table([*folders, tmp_path / "outputs" / "0123abcdef"])
    assert [line[0] for line in rows(made)] == ["ce", "focal", "poly"]
    assert [line[2] for line in rows(made)] == ["5", "0/5", "2/5"]
    assert rows(made)[1][1:] == ["missing", "0/5", "-"]
    assert rows(made)[2][3] == "0,1"
    assert made.rows[2].mean == pytest.approx(0.5)
    focal, poly, absent = made.remarks()
    assert poly == (
        "missing loss=poly: seed 2 (failed at step 120: NonFinite: loss is nan); seed 3 (unfinished after epoch 2); "
        "seed 4 (not started)"
    )
    assert (
        "seed 2 (test_accuracy is null: not finite, or not defined by the loss); seed 3 (unfinished); seed 4" in focal
    )
    assert absent == "not started: 0123abcdef"
    for text in (made.text(), made.markdown(), made.latex()):
        assert poly.replace("%", r"\%") in text
        assert "2/5" in text
    lines = list(csv.DictReader(io.StringIO(made.csv())))
    assert [line["mean"] for line in lines[:2]] == ["50.0", ""]
    assert lines[1]["runs"] == "5"


def test_a_damaged_result_is_missing_and_said(make):
    broken = make(1, 0.5)
    (broken / "result.json").write_text("{")
    made = table([make(0, 0.5), broken])
    assert rows(made) == [["50.00 (n=1)", "1/2", "0"]]
    assert "not valid JSON" in made.remarks()[0]


def test_selection_is_named(make):
    folders = [make(0, 0.5), make(1, 0.5)]
    last, best = table(folders), table(folders, select="test")
    assert "at the last epoch" in last.header
    assert "95 % confidence interval" in last.header
    assert "Student t" in last.header
    assert "selected on test" not in last.text() + last.markdown() + last.latex()
    assert best.rows[0].mean == pytest.approx(0.51)
    for text in (best.text(), best.markdown(), best.latex()):
        assert text.count("selected on test") == 2  # in the header and in the column's head
    val = table(folders, select="val")
    assert rows(val) == [["missing", "0/2", "-"]]
    assert "best on validation" in val.remarks()[0]


def test_a_baseline_needs_each_seed_once(make):
    folders = [make(0, 0.5, loss=loss) for loss in ("ce", "ce", "poly")]
    assert "some rows hold a seed twice" in table(folders).notes[0]  # the same run in two folders
    with pytest.raises(ValueError, match="some rows hold a seed twice"):
        table(folders, baseline="loss=ce")


def test_latex_is_escaped(make):
    folders = [make(0, 0.5, loss="a_b&50%$#{x}~^\\<"), make(0, 0.25, loss="ce")]
    text = table(folders).latex()
    assert (
        r"a\_b\&50\%\$\#\{x\}\textasciitilde{}\textasciicircum{}\textbackslash{}\textless{} & 50.00 (n=1) & 1 & 0 \\"
        in text
    )
    assert r"loss & test\_accuracy (\%) & n & seeds \\" in text
    body = [line for line in text.splitlines() if not line.startswith("%")]
    assert body[0] == r"\begin{tabular}{lrrl}"
    assert [body[1], body[3], body[6]] == [r"\toprule", r"\midrule", r"\bottomrule"]
    assert body[-1] == r"\end{tabular}"
    assert r"$\pm$" in table([make(0, 0.5), make(1, 0.6)]).latex()


def test_markdown_and_text_are_aligned(make):
    made = table([make(0, 0.5, loss="a|b"), make(0, 0.25, loss="longer")])
    lines = [line for line in made.markdown().splitlines() if line.startswith("|")]
    assert lines == [
        "| loss | test_accuracy (%) | n | seeds |",
        "| --- | --- | --- | --- |",
        "| a\\|b | 50.00 (n=1) | 1 | 0 |",
        "| longer | 25.00 (n=1) | 1 | 0 |",
    ]
    assert made.text().splitlines()[2:] == [
        "loss    test_accuracy (%)  n  seeds",
        "------  -----------------  -  -----",
        "a|b     50.00 (n=1)        1  0",
        "longer  25.00 (n=1)        1  0",
    ]


def test_the_command(make, tmp_path, capsys):
    make(0, 0.5, loss="ce")
    make(0, 0.6, loss="poly")
    (tmp_path / "outputs" / ".sweeps").mkdir()
    (tmp_path / "outputs" / "figures").mkdir()
    (tmp_path / "outputs" / "died").mkdir()
    (tmp_path / "outputs" / "died" / ".lock").touch()  # a run that ended before it wrote its config
    outputs = tmp_path / "outputs"
    assert [path.name for path in runs_under(outputs)] == ["0000", "0001", "died"]
    main([str(outputs), "--metric", "test_nll", "--by", "loss"])
    out = capsys.readouterr().out
    made = table(runs_under(outputs), metric="test_nll", by=["loss"])
    assert out == f"{made.text()}\nsaved as {outputs}/table.md, .tex, .csv, .png\n"
    assert "not started: died" in out
    assert (outputs / "table.md").read_text() == made.markdown()
    assert (outputs / "table.tex").read_text() == made.latex()
    assert (outputs / "table.csv").read_text() == made.csv()
    assert (outputs / "table.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    for name, start in (("pdf", b"%PDF"), ("svg", b"<?xml")):
        main([str(outputs), "--metric", "test_nll", "--by", "loss", "--format", name])
        assert (outputs / f"table.{name}").read_bytes().startswith(start)
    save(made, tmp_path)
    assert sorted(path.name for path in tmp_path.glob("table.*")) == ["table.csv", "table.md", "table.tex"]


def test_rows_are_compared_with_a_baseline_by_seed(make):
    ce, poly = [0.50, 0.52, 0.54, 0.90], [0.53, 0.54, 0.59]
    folders = [make(seed, value) for seed, value in enumerate(ce)]
    folders += [make(seed, value, loss="poly") for seed, value in enumerate(poly)]
    folders += [make(3, loss="poly", state="failed"), make(9, 0.1, loss="poly")]
    folders += [make(0, 0.6, loss="focal"), make(7, 0.5, loss="mse")]
    made = table(folders, baseline="loss=ce")
    # pairs 0, 1, 2: differences 3, 2, 5; mean 10 / 3, s = sqrt(7 / 3), t(0.975, 2) = 4.302653, s / sqrt(3) = 0.881917
    (poly_row,) = (row for row in made.rows if row.keys["loss"] == "poly")
    assert poly_row.difference.n == 3
    assert poly_row.difference.mean == pytest.approx(0.1 / 3)
    assert poly_row.difference.half == pytest.approx(0.01 * 4.302653 * 0.881917, rel=1e-5)
    # t = 3.779645 with 2 degrees of freedom: p = 1 - t / sqrt(2 + t^2) = 0.063414
    assert poly_row.difference.p == pytest.approx(0.063414, rel=1e-4)
    assert poly_row.holm == poly_row.difference.p  # the only comparison that is a test
    first, second = made.blocks()
    assert first.lines == made.cells()
    assert second.lines == [
        ["loss", "minus loss=ce", "pairs", "p", "p (Holm)"],
        ["focal", "+10.00 (n=1)", "1", "n < 2", "n < 2"],
        ["mse", "no seed in both", "0", "-", "-"],
        ["poly", "+3.33 ± 3.79", "3", "0.063", "0.063"],
    ]
    assert "paired by seed" in made.header
    assert made.header.endswith("Holm's correction over 1 comparison")
    for text in (made.text(), made.markdown(), made.latex()):
        assert text.count("minus loss=ce") == 2  # in the header and in the column's head
        assert "n < 2" in text.replace(r"\textless{}", "<")
    assert made.latex().count(r"\begin{tabular}") == made.latex().count(r"\end{tabular}") == 2
    lines = {line["loss"]: line for line in csv.DictReader(io.StringIO(made.csv()))}
    assert float(lines["poly"]["paired_difference"]) == pytest.approx(10 / 3)
    assert float(lines["poly"]["p_holm"]) == poly_row.holm
    assert [lines[loss]["baseline"] for loss in ("ce", "poly")] == ["loss=ce", "loss=ce"]
    assert [lines[loss]["pairs"] for loss in ("ce", "mse", "focal")] == ["", "", "1"]


def test_holm_counts_the_rows(make):
    """Two rows with the same differences: the smaller p is doubled and the other follows."""
    values = {"ce": [0.5, 0.5, 0.5], "poly": [0.53, 0.52, 0.55], "focal": [0.53, 0.52, 0.55]}
    folders = [make(seed, x, loss=loss) for loss, found in values.items() for seed, x in enumerate(found)]
    rows_ = [row for row in table(folders, baseline="loss=ce").rows if row.difference]
    assert [row.holm for row in rows_] == pytest.approx([2 * 0.063414] * 2, rel=1e-4)


def test_a_baseline_of_several_rows_is_taken_like_with_like(make):
    folders = []
    for optim, more in (("sgd", 0), ("sam", 0.1)):
        for loss, epsilon, gain in (("ce", None, 0), ("poly", 1.0, 0.02), ("poly", 2.0, 0.04)):
            nodes = {"loss.epsilon": epsilon} if epsilon else None
            for seed, value in enumerate((0.5, 0.51)):
                value += more + gain * (seed + 1)
                folders.append(make(seed, value, loss=loss, optim=optim, nodes=nodes))
    made = table(folders, baseline="loss=ce")
    assert sorted(made.by) == ["loss", "loss.epsilon", "optim"]
    found = {(row.keys["optim"], row.keys.get("loss.epsilon")): row for row in made.rows if row.base is not row}
    assert {key: row.difference.mean for key, row in found.items()} == pytest.approx(
        {("sgd", 1.0): 0.03, ("sgd", 2.0): 0.06, ("sam", 1.0): 0.03, ("sam", 2.0): 0.06}
    )
    one = table(folders, baseline="loss=ce optim=sgd")
    (far,) = (row for row in one.rows if row.keys["optim"] == "sam" and row.keys["loss"] == "ce")
    assert far.difference.mean == pytest.approx(0.1)
    assert far.difference.p is None  # 0.1 on every seed: no error to test by
    assert ["+10.00 ± 0.00", "2", "all equal", "all equal"] in [line[-4:] for line in one.blocks()[1].lines]
    unlike = table([*folders, make(0, 0.4, loss="poly", optim="adam")], baseline="loss=ce")
    assert "no one row to compare with" in unlike.text()


def test_the_rest_is_given_as_commands(make, capsys, tmp_path):
    typed = ["loss=poly", "model.hidden=[16]", "name=sweep"]
    make(0, 0.5, loss="poly", typed=[*typed, "seed=0"])
    make(1, loss="poly", state="failed", typed=[*typed, "seed=1"])
    for seed in (0, 1, 2):
        make(seed, 0.4, typed=["loss=ce", f"seed={seed}", "name=sweep"])
    main([str(tmp_path / "outputs")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3] == "what is missing, 2 runs:"
    assert [shlex.split(line) for line in lines[-2:]] == [
        ["python", "-m", "runner", *typed, f"seed={seed}"] for seed in (1, 2)
    ]


def test_of_many_missing_runs_the_first_commands_are_shown():
    found = remaining([f"run {i}" for i in range(23)]).splitlines()
    assert found[:3] == ["", "what is missing, 23 runs:", "run 0"]
    assert found[-2:] == ["run 19", "and 3 runs more: the sweep's own command goes on with all of them"]
    assert remaining(["run 0"]).splitlines() == ["", "what is missing, 1 run:", "run 0"]
    assert remaining([]) == ""


class Drawn(Report):
    def __init__(self, *panels):
        self.shown = panels

    def panels(self):
        return self.shown


def test_the_figure_shows_paper_and_ours(tmp_path):
    from PIL import Image

    def pixels(*panels, title=""):
        draw(Drawn(*panels), tmp_path / "table.png", title)
        found = np.asarray(Image.open(tmp_path / "table.png").convert("RGB")).reshape(-1, 3)
        return [int((found == list(bytes.fromhex(COLOURS[name][1:]))).all(1).sum()) for name in ("train", "test")]

    ours, paper = pixels(Panel("test (%)", [("a", [1.0, 2.0], (1.2, 0.3)), ("b", [], None)]))
    assert ours > 100
    assert paper > 100
    alone, none = pixels(Panel("test (%)", [("a", [1.0, 2.0], None)]))
    assert alone > 100
    assert none == 0
    assert pixels(Panel("x", [("a" * 100, [], None)]), Panel("y", [("a" * 100, [], None)]), title="t " * 200) == [0, 0]
    assert pixels(*[Panel(f"{i}", [("a", [float(i)], None)]) for i in range(4)])[0] > 100
    pixels(Panel("x", [(f"row {i}", [1.0 * i], None) for i in range(500)]))
    assert Image.open(tmp_path / "table.png").size[1] < 4000  # 60 of the rows, and the figure says so


def test_a_thousand_runs_take_seconds(make, tmp_path):
    model = make(0, 0.5, typed=["loss=ce", "seed=0"])
    config = (model / ".hydra" / "config.yaml").read_text()
    for i in range(1000):
        folder = tmp_path / "outputs" / f"x{i}"
        (folder / ".hydra").mkdir(parents=True)
        loss, seed = "poly" if i % 2 else "ce", i // 2
        own = (
            config.replace("seed: 0", f"seed: {seed}").replace("x.ce", f"x.{loss}").replace("loss: ce", f"loss: {loss}")
        )
        (folder / ".hydra" / "config.yaml").write_text(own)
        (folder / ".hydra" / "overrides.yaml").write_text(f"- loss={loss}\n- seed={seed}\n")
        (folder / "result.json").write_text(json.dumps({"last": {"test_accuracy": 0.5 + i / 5000}}))
    begun = time.process_time()
    made = table([path for path in runs_under(tmp_path / "outputs") if path != model], baseline="loss=ce")
    made.text(), made.markdown(), made.latex(), made.csv()
    assert time.process_time() - begun < 20
    assert [len(row.values) for row in made.rows] == [500, 500]
    assert made.rows[1].difference.mean == pytest.approx(1 / 5000)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metric", "test_acuracy"], "no metric 'test_acuracy' in these runs. Did you mean 'test_accuracy'?"),
        (["--by", "los"], "no key 'los' in the config of these runs. Did you mean 'loss'?"),
        (["--select", "best"], "invalid choice: 'best'"),
        (
            ["--by", "loss", "--baseline", "los=ce"],
            "--baseline los=ce: the rows have no key 'los'. Did you mean 'loss'?",
        ),
        (["--by", "loss", "--baseline", "loss=c"], "--baseline loss=c: no such row. Did you mean 'ce'? There are: ce"),
        (["--by", "loss", "--baseline", "ce"], "--baseline ce: the rows have no key 'ce'"),
        (["--unknown"], "unrecognized arguments"),
    ],
)
def test_mistakes_are_one_line(make, tmp_path, capsys, arguments, message):
    make(0, 0.5)
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "outputs"), *arguments])
    assert stop.value.code == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert message in error
    assert error.count("\n") == 1


def test_an_empty_folder_is_one_line_and_status_2(tmp_path):
    command = [sys.executable, "-m", "runner.sweep.table", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (run.returncode, run.stdout, run.stderr) == (2, "", f"no runs in {tmp_path}\n")


def test_regression_is_tabled_by_its_error(make):
    """Without being asked; with a run that has an accuracy among them that is the measure, as ever."""
    error, other = make(0, 0.25, loss="mse"), make(0, 0.5)
    path = error / "result.json"
    path.write_text(path.read_text().replace("test_accuracy", "test_mae"))
    found = table([error])
    assert (found.metric, found.rows[0].mean, found.percent) == ("test_mae", 0.25, False)
    assert table([error, other]).metric == "test_accuracy"
