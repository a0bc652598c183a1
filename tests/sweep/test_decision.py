"""Whether runs are packed is measured once for a kind on a machine, kept beside the runs, and in each run's record."""

import json
from pathlib import Path

import pytest
import torch

from runner.engine.replicas import Unpackable
from runner.sweep import decision, pack
from runner.sweep.decision import Decision, key
from tests.sweep.test_pack import alone, cells, seeds, train
from tests.tiny import compose

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """`clock.alone` and `clock.together`: seconds for a step; `clock.asked`: how often somebody looked."""

    class Clock:
        alone, together, asked = 1.0, 1.0, 0

        def __call__(self, run, alone):
            self.asked += 1
            return self.alone if alone else self.together

    made = Clock()
    monkeypatch.setattr(pack, "_seconds", made)
    return made


def side_by_side(cell) -> list[int]:
    sessions = json.loads((cell.folder / "environment.json").read_text())["sessions"]
    return [session["side_by_side"] for session in sessions]


def test_the_clock_decides_once(tmp_path, clock):
    clock.together = 1.5  # three at once in the time of one and a half
    first = cells(tmp_path, seeds(3))
    assert set(dict(train(first).values())) == {"done"}
    assert clock.asked == 2
    (kept,) = json.loads((tmp_path / "runs" / ".sweeps" / "packing.json").read_text()).values()
    assert kept["gain"] == 2.0
    assert [side_by_side(cell) for cell in first] == [[3], [3], [3]]
    clock.together = 100.0  # the machine is busy today
    more = cells(tmp_path, [["seed=7"], ["seed=8", "optim.lr=0.05"]])
    assert set(dict(train(more).values())) == {"done"}
    assert clock.asked == 2
    assert [side_by_side(cell) for cell in more] == [[2], [2]]
    assert side_by_side_alone(tmp_path) == [1]


def side_by_side_alone(tmp_path: Path) -> list[int]:
    (cell,) = cells(tmp_path, [["seed=9"]])
    alone(cell, tmp_path)
    return side_by_side(cell)


def test_slower_once_is_not_packed_again(tmp_path, clock):
    clock.together = 3.0
    some = cells(tmp_path, seeds(2))
    for times, words in ((2, "2 side by side train at 0.67 times"), (2, "side by side they train at 0.67 times")):
        with pytest.raises(Unpackable, match=words):
            train(some)
        assert clock.asked == times
    assert not any(cell.folder.exists() for cell in some)
    assert set(dict(train(some, how=2).values())) == {"done"}  # a number asks nobody
    assert clock.asked == 2


def test_each_kind_and_each_machine_decides_for_itself(monkeypatch):
    def of(*words):
        return key(compose(*words), CPU)

    same = [[], ["seed=1"], ["optim.lr=0.5"], ["name=other"], ["outputs_dir=elsewhere"], ["sweep.jobs=1"]]
    assert len({of(*words) for words in same}) == 1
    others = [["model.hidden=[8]"], ["train.batch_size=32"], ["loss=poly"], ["optim=sam"], ["train.epochs=3"]]
    assert len({of(*words) for words in ([], *others)}) == 1 + len(others)
    before = of()
    monkeypatch.setattr(decision, "processor", lambda: "another")
    assert of() != before


def test_a_damaged_file_is_measured_again(tmp_path):
    (cell,) = cells(tmp_path, seeds(1))
    path = cell.folder.parent / ".sweeps" / "packing.json"
    for content in ("{", "[]", '{"x": 1}', json.dumps({key(cell.config, CPU): {"gain": "fast"}})):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        with Decision(cell, CPU) as made:
            assert made.gain is None
            made.gain = 1.25
        with Decision(cell, CPU) as again:
            assert again.gain == 1.25
