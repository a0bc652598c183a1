import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from runner.sweep.table import main, runs_under, save, table


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
    folders = [make(seed, 0.5, loss=loss, optim=optim) for seed in (0, 1) for loss, optim in PAIRS]
    pooled = table(folders, by=["loss"])
    assert [line[-2:] for line in rows(pooled)] == [["4", "0,1,0,1"], ["4", "0,1,0,1"]]
    assert "differ in optim" in pooled.notes[0]
    assert table(folders, by=["loss", "optim"]).notes == []


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
    assert "seed 2 (test_accuracy is not finite); seed 3 (unfinished); seed 4 (not started)" in focal
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
    assert out == made.text()
    assert "not started: died" in out
    assert (outputs / "table.md").read_text() == made.markdown()
    assert (outputs / "table.tex").read_text() == made.latex()
    assert (outputs / "table.csv").read_text() == made.csv()
    save(made, tmp_path)
    assert sorted(path.name for path in tmp_path.glob("table.*")) == ["table.csv", "table.md", "table.tex"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metric", "test_acuracy"], "no metric 'test_acuracy' in these runs. Did you mean 'test_accuracy'?"),
        (["--by", "los"], "no key 'los' in the config of these runs. Did you mean 'loss'?"),
        (["--select", "best"], "invalid choice: 'best'"),
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
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert (run.returncode, run.stdout, run.stderr) == (2, "", f"no runs in {tmp_path}\n")
