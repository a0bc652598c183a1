"""Experiments whose runs are made up, for tests of their tables and of their files."""

import csv

from runner.command.config import Sweep
from runner.record.files import write_json
from tests.conftest import ROOT

MINE = ROOT / "tests" / "conf"

EXAMPLE = MINE / "experiment" / "example" / "digits.yaml"

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


def lines_of(tmp_path, stem="experiment") -> dict[tuple[str, str], dict]:
    with open(tmp_path / "out" / "example_digits" / f"{stem}.csv") as file:
        return {(line["row"], line["measure"]): line for line in csv.DictReader(file)}


def cells_of(text: str, row: str, measure: str, block: int = 0) -> list[str]:
    """The cells of one line of a Markdown table."""
    found = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    return [line[2:] for line in found if line[:2] == [row, measure]][block]


def row(name: str, **changes):
    return lambda node: node["rows"][name].update(changes)
