"""An experiment's file and its command: what is taken as typed, what is refused, which word wins."""

import json
import shlex

import pytest

from runner.command.listing import conf_dir, options, title
from runner.engine import run as running
from runner.record import again, provenance
from runner.record.files import write_json
from runner.sweep import experiment
from tests.sweep.experiments import MINE, Stand, cells_of, lines_of, row
from tests.tiny import command


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
        (
            lambda node: node["rows"].update(CE={}),
            "experiment.rows.CE: it says by `tuned` what search its settings got",
        ),
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
