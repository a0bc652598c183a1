"""Sweeps over data sets of every task: trained side by side, then tabled, drawn and compared by every measure."""

import csv
import io
import json
from pathlib import Path

import pytest

from runner.command.config import Sweep
from runner.record.curves import draw as draw_curves
from runner.record.files import history
from runner.sweep import pack
from runner.sweep.display import _measure
from runner.sweep.ends import conclude
from runner.sweep.report import draw
from runner.sweep.table import table
from tests.sweep.test_pack import cells, train
from tests.tiny import compose

TASKS = {
    "classes": ["dataset=digits"],
    "two classes": ["dataset=breast_cancer"],
    "several labels": ["dataset=multi_digits", "loss=asl_multilabel"],
    "regression": ["dataset=diabetes", "loss=cs_ib"],
    "no validation split": ["dataset=wine", "dataset.val=0", "dataset.subset=100"],
}


@pytest.fixture(scope="module", params=TASKS)
def swept(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack, "WORTH", 0.0)  # timing decides nothing here
        some = cells(
            folder, [["seed=0"], ["seed=1", "optim.lr=0.05"], ["seed=0", "optim.lr=0.05"]], *TASKS[request.param]
        )
        # where a loss cannot be packed its runs go one by one, as the pool has them go
        try:
            found = train(some)
        except pack.Unpackable:
            found = {}
            for cell in some:
                pack._alone_to_the_end(cell, lambda cell, *what: found.update({str(cell): what}))
    assert set(found.values()) == {("done", "")}
    return some


def measures(cell) -> list[str]:
    last = json.loads((cell.folder / "result.json").read_text())["last"]
    return [key for key in last if key.startswith(("train_", "val_", "test_"))]


def test_a_sweep_ends_with_its_table(swept, capsys):
    assert conclude(swept) == 0
    out, err = capsys.readouterr()
    assert err == ""
    home = swept[0].folder.parent
    assert f"saved as {home}/table.md, .tex, .csv, .png; the runs in {home}" in out
    assert {path.name for path in home.glob("table.*")} == {"table.md", "table.tex", "table.csv", "table.png"}
    assert _measure(swept[0]).startswith(("test_accuracy ", "test_mae "))


def test_every_measure_is_tabled_drawn_and_compared(swept, tmp_path):
    folders = [cell.folder for cell in swept]
    assert len(measures(swept[0])) >= 4
    for metric in measures(swept[0]):
        made = table(folders, metric=metric, baseline="optim.lr=0.05")
        assert [len(row.values) for row in made.rows] == [1, 2]
        (line,) = [line for line in csv.DictReader(io.StringIO(made.csv())) if line["optim.lr"] != "0.05"]
        assert line["pairs"] == "1"
        assert made.text() and made.markdown() and made.latex()
    draw(made, tmp_path / "table.svg")


def test_a_measure_that_a_loss_does_not_define_is_said_everywhere(swept, tmp_path):
    """Null in every record, as of losses without probabilities: missing with a reason, and nothing breaks."""
    folders = []
    for number, cell in enumerate(swept):
        folder = tmp_path / str(number)
        (folder / ".hydra").mkdir(parents=True)
        (folder / ".hydra" / "config.yaml").write_text((cell.folder / ".hydra" / "config.yaml").read_text())
        result = json.loads((cell.folder / "result.json").read_text())
        for name in ("last", "best_val", "best_test"):
            result[name] = result[name] and {key: None if "_" in key else value for key, value in result[name].items()}
        (folder / "result.json").write_text(json.dumps(result))
        folders.append(folder)
    made = table(folders)
    assert [row.values for row in made.rows] == [[], []]
    assert "is null: not finite, or not defined by the loss" in made.text()
    draw(made, tmp_path / "table.png")
    records = [{key: None if "_" in key else value for key, value in line.items()} for line in history(swept[0].folder)]
    draw_curves(records, tmp_path / "curves.png")
    assert Path(tmp_path / "curves.png").exists()


def test_pack_false_is_off():
    for word in ("off", "false", "False"):
        assert Sweep(**compose(f"sweep.pack={word}")["sweep"]).pack == "off"
    assert Sweep(**compose("sweep.pack=3")["sweep"]).pack == 3
