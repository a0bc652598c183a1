import csv
import io
import json

import pytest
import yaml

from runner.sweep.alike import default_metric
from runner.sweep.table import main, table


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


def test_regression_is_tabled_by_its_error(make):
    """Without being asked; with a run that has an accuracy among them that is the measure, as ever."""
    error, other = make(0, 0.25, loss="mse"), make(0, 0.5)
    path = error / "result.json"
    path.write_text(path.read_text().replace("test_accuracy", "test_mae"))
    found = table([error])
    assert (found.metric, found.rows[0].mean, found.percent) == ("test_mae", 0.25, False)
    assert table([error, other]).metric == "test_accuracy"


def test_runs_of_before_a_group_have_its_plain_option(make):
    """Whether their config names the group, as it does since, or not."""
    even = make(0, 0.7, sampler="balanced")
    config = yaml.safe_load((even / ".hydra" / "config.yaml").read_text())
    config["sampler"] = {"_target_": "x.Balanced"}
    (even / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    now = make(1, 0.6, sampler="shuffle")
    config = yaml.safe_load((now / ".hydra" / "config.yaml").read_text())
    config["sampler"] = {"_target_": "runner.sampler.Sampler"}
    (now / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    made = table([even, now, make(0, 0.5)], by=["sampler"])
    assert {row.keys["sampler"]: row.seeds for row in made.rows} == {"balanced": [0], "shuffle": [0, 1]}


def test_of_places_a_table_shows_what_chooses_the_best_epoch():
    assert default_metric({"test_accuracy", "test_nll", "test_ece"}) == "test_accuracy"
    assert default_metric({"test_accuracy", "test_nll", "test_perplexity"}) == "test_nll"
    assert default_metric({"test_accuracy", "test_nll", "test_miou", "test_dice"}) == "test_miou"
