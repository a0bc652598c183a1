"""How a table is shown: text, LaTeX, its command, its figure, its size."""

import json
import shlex
import subprocess
import sys
import time

import numpy as np
import pytest

from runner.sweep.missing import remaining
from runner.sweep.report import COLOURS, Panel, Report, draw
from runner.sweep.runs import runs_under
from runner.sweep.table import main, save, table
from tests.conftest import ROOT


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
