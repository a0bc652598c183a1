"""Tuning as part of an experiment. What trains is a stand-in that knows the best setting, but for two tests."""

import csv
import json
import math

import pytest

from runner.command.build import locate
from runner.engine.diagnose import NonFinite
from runner.engine.run import run as trained
from runner.record.files import write_json
from runner.record.identity import identity
from runner.sweep.space import Range, wider
from tests.tiny import compose

GRID = [0.001, 0.003, 0.01, 0.03, 0.1]


class Stand:
    """Validation accuracy falls with the distance of log lr from that of the best lr of a row's loss, times 1.1 where
    label smoothing is 0.1; test accuracy tells which lr it was. `stops`: after so many runs."""

    def __init__(self, best, stops=math.inf, diverges=lambda loss, lr: False):
        self.best, self.stops, self.diverges, self.ran = best, stops, diverges, []

    def __call__(self, cells, settings, place):
        states = {}
        for cell in cells:
            config = cell.config
            loss, lr, seed = config["choices"]["loss"], config["optim"]["lr"], config["seed"]
            if (cell.folder / "result.json").exists():
                states[cell.folder] = "done"
                continue
            if len(self.ran) >= self.stops:
                states[cell.folder] = "stopped"
                continue
            self.ran.append((config["name"], loss, lr, seed))
            cell.folder.mkdir(parents=True, exist_ok=True)
            if self.diverges(loss, lr):
                write_json(cell.folder / "failed.json", {"type": "NonFinite", "message": "loss is nan", "step": 7})
                states[cell.folder] = "failed"
                continue
            value = 0.9 - 0.05 * abs(math.log10(lr / self.best[loss])) - 0.1 * config["loss"].get("smoothing", 0.0)
            last = {"val_accuracy": value, "val_nll": 1 - value, "epoch": 1}
            if config["train"]["test"]:
                last |= {"test_accuracy": value, "test_nll": lr}
            write_json(cell.folder / "result.json", {"last": last, "best_test": last, "best_val": last})
            states[cell.folder] = "done"
        return states


def tuned(**changes):
    """The example with `tune` in it, and nothing tuned by hand."""

    def change(node):
        node["tune"] = {"metric": "val_accuracy", "trials": 5, "seeds": [100], "space": {"optim.lr": GRID}}
        node["tune"] |= {key: value for key, value in changes.items() if key != "rows"}
        for row, arm in node["rows"].items():
            arm.pop("tuned")
            arm["overrides"] = [word for word in arm["overrides"] if not word.startswith("optim.lr")]
            arm |= changes.get("rows", {}).get(row, {})
        node["recipe"] = [word for word in node["recipe"] if not word.startswith(("optim.lr", "dataset.val"))]

    return change


BEST = {"ce": 0.01, "poly": 0.1, "focal": 0.001}


def winners(tmp_path) -> dict[str, dict]:
    with open(tmp_path / "out" / "example_digits" / "experiment-tuning.csv") as file:
        return {line["row"]: line for line in csv.DictReader(file) if line["chosen"]}


def trials(tmp_path) -> list[dict]:
    with open(tmp_path / "out" / "example_digits" / "experiment-tuning.csv") as file:
        return list(csv.DictReader(file))


def test_every_row_gets_what_is_best_for_it_and_the_table_is_trained_with_that(call, edited, tmp_path):
    stand = Stand(BEST)
    status, out, err = call(run=stand, mine=edited(tuned()))
    assert (status, err) == (0, "")
    chosen = {row: float(line["optim.lr"]) for row, line in winners(tmp_path).items()}
    assert chosen == {"CE": 0.01, "Poly-1": 0.1, "focal": 0.001}
    of_table = {(loss, lr) for name, loss, lr, _ in stand.ran if not name.endswith("_tuning")}
    assert of_table == {("ce", 0.01), ("poly", 0.1), ("focal", 0.001)}
    of_trials = [(loss, seed) for name, loss, _, seed in stand.ran if name.endswith("_tuning")]
    assert {seed for _, seed in of_trials} == {100}
    assert [of_trials.count((loss, 100)) for loss in BEST] == [5, 5, 5]
    assert "5 trials for every row that is tuned, every point of a grid, by val_accuracy at the last epoch" in out
    assert "tuning of CE: optim.lr=0.01: 90.00 %; beside it optim.lr=0.003 87.39 %, optim.lr=0.03 87.61 %" in out
    assert "tuning of Poly-1: optim.lr=0.1: 90.00 %; beside it optim.lr=0.03 87.39 %; largest optim.lr tried" in out
    assert out.count("AT AN EDGE") == 2


@pytest.mark.parametrize("sampler", ["grid", "random", "tpe"])
def test_every_sampler_finds_a_setting_that_is_known_to_be_best(call, edited, tmp_path, sampler):
    node = tuned(sampler=sampler, trials=24, space={"optim.lr": {"log": [1e-4, 1.0]}})
    assert call(run=Stand(BEST), mine=edited(node))[0] == 0
    for row, loss in (("CE", "ce"), ("Poly-1", "poly"), ("focal", "focal")):
        off = abs(math.log10(float(winners(tmp_path)[row]["optim.lr"]) / BEST[loss]))
        # of 24 evenly spaced in 4 decades none is farther than 0.09; of 24 at random the nearest is 0.16 off at most
        # with probability 1 - (1 - 0.08)^24 = 0.86, and the draws are fixed
        assert off < {"grid": 0.09, "random": 0.2, "tpe": 0.1}[sampler], row
    assert len(trials(tmp_path)) == 3 * 24


def test_a_search_that_asks_is_the_same_again_and_other_for_another_row(call, edited, tmp_path):
    node = edited(tuned(sampler="tpe", trials=9, space={"optim.lr": {"log": [1e-4, 1.0]}}))
    same = {"ce": 0.01, "poly": 0.01, "focal": 0.01}
    assert call(run=Stand(same, stops=14), mine=node)[0] == 130  # in the second round
    assert call(run=(second := Stand(same)), mine=node)[0] == 0
    stopped, asked = trials(tmp_path), [run for run in second.ran if run[0].endswith("_tuning")]
    assert len(asked) == 27 - 14
    call("outputs_dir=" + str(tmp_path / "whole"), run=Stand(same), mine=node)
    with open(tmp_path / "whole" / "example_digits" / "experiment-tuning.csv") as file:
        whole = list(csv.DictReader(file))
    for key in ("row", "optim.lr", "val_accuracy", "chosen"):
        assert [line[key] for line in stopped] == [line[key] for line in whole]
    by_row = {row: [line["optim.lr"] for line in whole if line["row"] == row] for row in ("CE", "focal")}
    assert by_row["CE"] != by_row["focal"]


def test_a_grid_is_widened_for_all_rows_alike_until_no_winner_is_at_its_edge(call, edited, tmp_path):
    best = {"ce": 0.01, "poly": 0.3, "focal": 0.01}
    status, out, _ = call(run=Stand(best), mine=edited(tuned(extend=3)))
    assert status == 0
    assert float(winners(tmp_path)["Poly-1"]["optim.lr"]) == 0.3
    for row in ("CE", "Poly-1", "focal"):
        rates = sorted(float(line["optim.lr"]) for line in trials(tmp_path) if line["row"] == row)
        assert rates == [*GRID, 0.3, 1.0]  # 0.3 was an edge too
    assert "7 trials for every row that is tuned, every point of a grid, 5 before it was widened 2 of 3 times" in out
    assert "AT AN EDGE" not in out


def test_what_a_grid_cannot_be_widened_by_is_marked(call, edited):
    """A row's own key, and a key that rows have different lists of."""
    rows = {"Poly-1": {"space": {"optim.lr": [0.001, 0.003, 0.01, 0.02, 0.03]}}}
    status, out, _ = call(run=Stand({"ce": 1.0, "poly": 1.0, "focal": 0.01}), mine=edited(tuned(extend=2, rows=rows)))
    assert status == 0
    assert out.count("AT AN EDGE") == 2 and "widened" not in out


def test_what_diverges_is_the_worst_and_not_tried_again(call, edited, tmp_path):
    stand = Stand({"ce": 0.1, "poly": 0.1, "focal": 0.1}, diverges=lambda loss, lr: loss == "ce" and lr > 0.02)
    node = edited(tuned())
    status, out, _ = call(run=stand, mine=node)
    assert status == 0 and float(winners(tmp_path)["CE"]["optim.lr"]) == 0.01
    assert "beside it optim.lr=0.003 84.39 %, optim.lr=0.03 diverged" not in out
    assert "optim.lr=0.03 diverged" in out and "; 2 diverged" in out
    call(run=(again := Stand(BEST)), mine=node)
    assert again.ran == []


def test_where_all_diverge_nothing_is_chosen(call, edited):
    stand = Stand(BEST, diverges=lambda loss, lr: loss == "focal")
    status, _, err = call(run=stand, mine=edited(tuned()))
    assert (status, err) == (1, "runner: every trial of row 'focal' diverged: give it another space\n")
    assert all(name.endswith("_tuning") for name, *_ in stand.ran)


def test_several_seeds_count_by_their_mean(call, edited, tmp_path):
    stand = Stand(BEST)
    assert call(run=stand, mine=edited(tuned(seeds=[100, 101])))[0] == 0
    assert sorted(run[3] for run in stand.ran if run[:3] == ("example_digits_tuning", "ce", 0.01)) == [100, 101]
    assert all(len(line["runs"].split()) == 2 for line in trials(tmp_path))


@pytest.mark.parametrize("sampler", ["grid", "tpe"])
def test_of_a_measure_that_falls_the_smallest_is_best(call, edited, tmp_path, sampler):
    node = tuned(metric="val_nll", sampler=sampler, **({} if sampler == "grid" else {"trials": 20}))
    assert call(run=Stand(BEST), mine=edited(node))[0] == 0
    assert {row: float(line["optim.lr"]) for row, line in winners(tmp_path).items()} == {
        "CE": 0.01,
        "Poly-1": 0.1,
        "focal": 0.001,
    }


def test_the_best_epoch_counts_where_that_is_asked_for(call, edited, tmp_path):
    """Every run ends as at lr 0.01 is best; on the way the one with 0.03 was better than all."""

    class Passing(Stand):
        def __call__(self, cells, settings, place):
            states = super().__call__(cells, settings, place)
            for cell in cells:
                peak = 0.99 if cell.config["optim"]["lr"] == 0.03 else 0.0
                (cell.folder / "metrics.jsonl").write_text(json.dumps({"epoch": 1, "val_accuracy": peak}) + "\n")
            return states

    same = {"ce": 0.01, "poly": 0.01, "focal": 0.01}
    for select, lr in (("last", 0.01), ("best", 0.03)):
        assert call(run=Passing(same), mine=edited(tuned(select=select)))[0] == 0
        assert {float(line["optim.lr"]) for line in winners(tmp_path).values()} == {lr}


def test_where_columns_are_of_different_runs_their_mean_counts(call, edited, tmp_path):
    """On whole data lr 0.001 is best and on half of them 0.1; the mean of the two is best between."""

    class Two(Stand):
        def __call__(self, cells, settings, place):
            states = {}
            for cell in cells:
                self.best = dict.fromkeys(BEST, 0.001 if cell.config["dataset"]["subset"] == 100 else 0.1)
                states |= super().__call__([cell], settings, place)
            return states

    def change(node):
        tuned(space={"optim.lr": [0.0001, 0.001, 0.01, 0.1, 1.0]})(node)
        node["columns"]["half"] = {"metric": "test_accuracy", "overrides": ["dataset.subset=50"]}
        for arm in node["rows"].values():
            arm.pop("paper", None)

    status, out, _ = call(run=Two(BEST), mine=edited(change))
    assert status == 0 and "(mean of 2 runs each)" in out
    for line in trials(tmp_path):
        off = [abs(math.log10(float(line["optim.lr"]) / best)) for best in (0.001, 0.1)]
        assert (
            float(line["val_accuracy"]) == pytest.approx(0.9 - 0.05 * sum(off) / 2) and len(line["runs"].split()) == 2
        )


def test_a_row_that_says_how_it_was_tuned_is_left_out(call, edited, tmp_path):
    node = tuned(rows={"focal": {"tuned": "by its authors", "overrides": ["loss=focal", "optim.lr=0.5"]}})
    stand = Stand(BEST)
    status, out, _ = call(run=stand, mine=edited(node))
    assert status == 0 and "tuning of focal: by its authors" in out
    assert {run[2] for run in stand.ran if run[1] == "focal"} == {0.5}


@pytest.mark.parametrize(
    "changes, line",
    [
        ({"trials": 6}, "rows.CE: its grid has 5 points (5), and tune.trials=6, as many for every row"),
        (
            {"rows": {"Poly-1": {"space": {"loss.epsilon": [1.0, 2.0]}}}},
            "rows.Poly-1: its grid has 10 points (5 times 2), and tune.trials=5, as many for every row",
        ),
        ({"seeds": [1]}, "tune.seeds=[1]: 1 is a seed of the table; trials need others"),
        ({"seeds": []}, "tune.seeds=[]: must be one seed or more, each once"),
        ({"metric": "test_accuracy"}, "settings are chosen by a measure of the validation split"),
        ({"metric": "val_acuracy"}, "settings are chosen by a measure of the validation split. Did you mean 'val_acc"),
        ({"space": {}}, "rows.CE: it is to be tuned, and has no space; `tuned: <why not>` leaves it out"),
        ({"space": {"optim.lr": {"log": [0, 1]}}}, "low must be below high, and above 0"),
        ({"space": {"optim.lr": 3}}, "rows.CE, space.optim.lr=3: must be a list of values, or {log: [low, high]}"),
        ({"sampler": "tpe", "extend": 1}, "tune.extend=1: only a grid is widened, and tune.sampler=tpe"),
        ({"space": {"optim.lrr": GRID}}, "row 'CE': no key 'optim.lrr'. Did you mean 'optim.lr'?"),
        (
            {"typed": "optim.lr=0.5"},
            "optim.lr=0.5: tuning chooses it; take it out of the",
        ),
        ({"rows": {"CE": {"tuned": "no", "space": {"optim.lr": GRID}}}}, "`tuned` leaves it out of the search"),
    ],
)
def test_what_would_not_be_fair_or_not_be_a_search_is_one_line(call, edited, changes, line):
    words = [changes.pop("typed")] if "typed" in changes else []
    status, _, err = call(*words, run=(stand := Stand(BEST)), mine=edited(tuned(**changes)))
    assert status == 2 and line in err and err.count("\n") == 1, err
    assert stand.ran == []


def test_a_space_without_a_search_and_a_row_that_says_nothing_are_refused(call, edited):
    def space(node):
        node["rows"]["CE"]["space"] = {"optim.lr": GRID}

    def nothing(node):
        node["rows"]["CE"].pop("tuned")

    for change in (space, nothing):
        status, _, err = call(mine=edited(change))
        assert status == 2 and "or the file has `tune`" in err


def test_ranges_and_the_pace_of_lists():
    assert Range("log", 1e-4, 1.0).points(5) == [1e-4, 1e-3, 1e-2, 1e-1, 1.0]
    assert Range("linear", 0.0, 1.0).points(3) == [0.0, 0.5, 1.0]
    assert Range("whole", 16, 64).points(3) == [16, 40, 64]
    assert (wider(GRID, 0), wider(GRID, 1)) == (0.0003, 0.3)
    assert (wider([0.1, 0.2, 0.4], 0), wider([0.1, 0.2, 0.4], 1)) == (0.05, 0.8)
    assert (wider([0.7, 0.8, 0.9], 0), wider([0.7, 0.8, 0.9], 1)) == (0.6, 1.0)
    assert (wider([0.01, 0.1], 0), wider([0.01, 0.1], 1)) == (0.001, 1.0)
    assert (wider([16, 24], 0), wider([16, 24], 1)) == (8, 32)
    assert wider(["l1", "none"], 1) is wider([0.1], 1) is wider([True, False], 0) is None


def test_the_search_does_not_so_much_as_measure_the_test_split(call, edited, tmp_path, monkeypatch):
    """The runs are real, and their test split is not a number."""
    digits = locate("runner.dataset.digits.Digits", "dataset")
    prepare = digits.prepare

    def poisoned(self):
        prepare(self)
        self.test = self.test.select(slice(None))
        self.test.base = self.test.base.float() * math.nan

    monkeypatch.setattr(digits, "prepare", poisoned)
    alone = compose("train.epochs=1", f"outputs_dir={tmp_path}", "model.hidden=[8]")
    with pytest.raises(NonFinite):
        trained(alone, [], say=lambda *_: None)

    def real(cells, settings, place):
        for cell in cells:
            if cell.config["name"].endswith("_tuning"):
                trained(cell.config, cell.overrides, say=lambda *_: None)
        return {cell.folder: "done" if (cell.folder / "result.json").exists() else "missing" for cell in cells}

    grid = {"optim.lr": [0.01, 0.1]}
    status, out, err = call("model.hidden=[8]", "train.epochs=1", run=real, mine=edited(tuned(trials=2, space=grid)))
    assert status == 1 and "optim.lr=0.1: " in out, err  # the table's own runs are missing


def test_a_run_that_measures_test_is_called_as_before_there_was_a_choice():
    plain, without = compose(), compose("train.test=false")
    before = plain | {"train": {key: value for key, value in plain["train"].items() if key != "test"}}
    assert identity(plain) == identity(before) != identity(without)
