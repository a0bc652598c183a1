"""What decides a result beside the config: compared where a run is skipped, resumed or tabled; `--again`."""

import copy
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from runner.__main__ import main
from runner.core.mistake import ConfigError
from runner.engine.run import run
from runner.record import again, provenance
from runner.record.files import finished, write_json
from runner.record.folder import Stopped
from runner.sweep.cells import Cell
from runner.sweep.ends import conclude, stale
from runner.sweep.table import table
from tests.tiny import compose

LOSS = '''"""Of a user's own."""
from torch.nn.functional import cross_entropy

from runner.loss import Loss
from my_helpers import times


class Mine(Loss):
    """A loss."""

    def forward(self, out, batch):
        return times(cross_entropy(out.logits, batch.y, reduction="none"))
'''
HELP = "def times(x):\n    return 1.0 * x\n"
TINY = ["dataset.subset=64", "train.batch_size=32", "train.epochs=1", "model.hidden=[4]", "name=own"]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with a loss of the user's own, where commands are typed; its modules are forgotten by `edit`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_losses.py").write_text(LOSS)
    (tmp_path / "my_helpers.py").write_text(HELP)
    (tmp_path / "mine" / "loss").mkdir(parents=True)
    (tmp_path / "mine" / "loss" / "mine.yaml").write_text("# Mine\n_target_: my_losses.Mine\n")
    forget()
    yield tmp_path
    forget()


def forget() -> None:
    """As a new process begins."""
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    shutil.rmtree(path.parent / "__pycache__", ignore_errors=True)  # two edits within a second look the same to Python
    forget()


def config(*words: str, target="my_losses.Mine", **nodes) -> dict:
    made = copy.deepcopy(compose(*TINY, *words))
    made["loss"] = {"_target_": target}
    return {**made, "outputs_dir": "outputs", **nodes}


def command(*words: str, capfd) -> tuple[int, str, str]:
    status = main(["--config-dir", "mine", "loss=mine", *TINY, *words])
    return status, *capfd.readouterr()


def results() -> list[Path]:
    return sorted(Path("outputs").glob("own/*/result.json"))


# ---- which files


def test_the_files_of_the_options_and_what_they_import_are_known(own):
    found = provenance.code(config("quantization=lsq", "hook=mesa"))
    names = found["sources"]
    # fmt: off
    assert {"my_losses", "my_helpers", "runner.quantization.lsq", "runner.quantization.fake", "runner.hook.mesa",
            "runner.hook.saf", "runner.optim.sgd", "runner.model.mlp", "runner.dataset.digits"} <= set(names)
    # fmt: on
    assert not {"runner.engine.trainer", "runner.loss", "runner.loss.poly", "runner.dataset.loader"} & set(names)
    assert found["versions"]["torch"] == torch.__version__
    assert Path(names["my_losses"]["file"]) == own / "my_losses.py"
    assert provenance.changed(found, provenance.code(config("quantization=lsq", "hook=mesa"))) == []


def test_a_package_of_the_users_with_every_way_to_import(own):
    """Relative, absolute, inside a function, of the package, of a base class's module; not what is not imported."""
    package = own / "my_package"
    (package / "deep").mkdir(parents=True)
    for name, text in {
        "__init__.py": "",
        "loss.py": "from . import base\nfrom .deep.more import f\nimport my_package.plain\nimport json, numpy\n"
        "class Mine(base.Base):\n    def forward(self, out, batch):\n        from my_package import late\n",
        "base.py": "from runner.loss import Loss\nclass Base(Loss): ...\n",
        "deep/__init__.py": "",
        "deep/more.py": "from ..far import f\n",
        "far.py": "def f(): ...\n",
        "plain.py": "",
        "late.py": "import my_helpers\n",
        "stranger.py": "",
    }.items():
        (package / name).write_text(text)
    found = provenance.code(config(target="my_package.loss.Mine"))
    wanted = {"loss", "base", "deep", "deep.more", "far", "plain", "late"}
    mine = {name for name in found["sources"] if name.startswith("my_")}
    assert mine == {"my_package", "my_helpers", *(f"my_package.{name}" for name in wanted)}
    assert {"numpy", "torch"} <= set(found["versions"])


@pytest.mark.parametrize(
    ("old", "new", "differs"),
    [
        ("class Mine", "# a comment\nclass Mine", False),
        ('"""A loss."""', '"""A better loss."""', False),
        ("    def forward", "\n    def forward", False),
        ('"none")', '"none") * 2', True),
        ("times(cross", "(cross", True),
    ],
)
def test_what_is_a_change_of_code(own, old, new, differs):
    before = provenance.code(config())
    edit(own / "my_losses.py", old, new)
    now = provenance.code(config())
    assert provenance.changed(before, now) == (["my_losses.py has changed since"] if differs else [])


def test_what_this_process_imported_counts_and_not_a_later_edit(own):
    before = provenance.code(config())
    (own / "my_losses.py").write_text(LOSS + "x = 1\n")
    assert provenance.code(config()) == before
    forget()
    assert provenance.changed(before, provenance.code(config()))


# ---- skipped


def test_a_finished_run_of_other_code_is_not_already_done(own, capfd):
    assert command(capfd=capfd)[0] == 0
    (path,) = results()
    first = path.read_bytes()
    status, out, _ = command(capfd=capfd)
    assert status == 0
    made = json.loads(first)["made"]
    assert "already done" in out
    assert json.loads(first)["finished"][:10] in out  # when
    assert provenance.commit(made) in out  # by which code
    assert "--again" in out  # and how to do it again
    edit(own / "my_helpers.py", "1.0", "2.0")
    status, out, err = command(capfd=capfd)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    for word in ("my_helpers.py has changed since", "--again", "name="):
        assert word in err
    assert path.read_bytes() == first
    edit(own / "my_helpers.py", "2.0", "1.0")
    assert "already done" in command(capfd=capfd)[1]

    edit(own / "my_helpers.py", "1.0", "2.0")
    status, out, err = command("--again", capfd=capfd)
    assert (status, err) == (0, "")
    (kept,) = Path("outputs/own/.earlier").iterdir()
    assert str(kept) in out
    assert (kept / "result.json").read_bytes() == first
    assert {"last.pt", "metrics.jsonl", ".hydra"} <= {entry.name for entry in kept.iterdir()}
    assert results() == [path]
    assert json.loads(path.read_text())["last"]["train_loss"] > 1.8 * json.loads(first)["last"]["train_loss"]
    status, out, _ = command("--again=changed", capfd=capfd)  # nothing has
    assert "already done" in out
    assert command("--again", capfd=capfd)[0] == 0
    assert sorted(entry.name[-2:] for entry in kept.parent.iterdir()) == ["-1", "-2"]
    status, _, err = command("--again=twice", capfd=capfd)
    assert (status, len(err.splitlines())) == (2, 1)
    assert again.wanted == ""  # by the next command in this process


def test_a_result_of_before_sources_were_recorded_is_done_and_says_so(own):
    lines = []
    run(config(), [])
    (path,) = results()
    result = finished(path.parent)
    del result["made"]
    write_json(path, result)
    edit(own / "my_losses.py", '"none")', '"none") * 2')
    result["notices"] = ["what the run had to say"]
    write_json(path, result)
    assert run(config(), [], say=lines.append) == result
    assert "already done" in lines[0]
    assert "not recorded" in lines[0]
    assert "note    what the run had to say" in lines[0]


DATA = """
import torch
from pathlib import Path
from runner.dataset import Dataset, Split, fingerprint


class Table(Dataset):
    task, classes, shape, names = "classes", 2, (1,), ["a", "b"]
    mean, std = torch.zeros(1), torch.ones(1)

    def load(self):
        x = torch.tensor([float(word) for word in Path("table.txt").read_text().split()])[:, None]
        y = (x[:, 0] > 0).long()
        self.fingerprint = fingerprint(x, y)
        return Split(x, y), Split(x, y)
"""


def test_a_finished_run_of_other_data_is_not_already_done(own):
    (own / "my_data.py").write_text(DATA)
    text = " ".join(str((-1.0) ** i * i) for i in range(64))
    (own / "table.txt").write_text(text)
    cells = [
        Cell(config(f"seed={seed}", target="runner.loss.ce.CrossEntropy", dataset={"_target_": "my_data.Table"}), [])
        for seed in range(3)
    ]
    for cell in cells[:2]:
        run(cell.config, [], say=lambda *_: None)
    lines = []
    run(cells[0].config, [], say=lines.append)
    assert "already done" in lines[0]
    assert stale(cells) == {}
    (own / "table.txt").write_text(text.replace("-1.0", "-1.5"))
    with pytest.raises(ConfigError, match=r"the data have changed since.*--again"):
        run(cells[0].config, [])
    assert set(stale(cells)) == {cell.folder for cell in cells[:2]}
    run(cells[2].config, [], say=lambda *_: None)
    assert set(stale(cells)) == {cell.folder for cell in cells[:2]}
    (own / "table.txt").unlink()  # not here: nothing can be compared
    run(cells[0].config, [], say=lines.append)
    assert "already done" in lines[-1]


@pytest.mark.parametrize(
    ("key", "said"), [("torch", "torch was 1.2.3"), ("engine", "the program's own files differ from those of")]
)
def test_versions_are_said_and_keep_nothing_from_being_done(own, key, said):
    lines = []
    result = run(config(), [])
    (path,) = results()
    if key == "torch":
        result["made"]["versions"]["torch"] = "1.2.3"
    else:
        result["made"]["engine"] = "0" * 16
    write_json(path, result)
    run(config(), [], say=lines.append)
    assert said in lines[0]


# ---- resumed


def stopped(made: dict) -> Path:
    """A run that was stopped after its first epoch."""
    from runner.engine.trainer import Trainer

    end = Trainer.end_epoch

    def then_stop(self, rate):
        end(self, rate)
        self.stop = "SIGTERM"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "end_epoch", then_stop)
        with pytest.raises(Stopped):
            run(made, [], say=lambda *_: None)
    (path,) = Path("outputs").glob("own/*/last.pt")
    return path


@pytest.mark.parametrize("what", ["code", "data"])
def test_a_run_of_other_code_or_data_does_not_go_on_in_silence(own, what, monkeypatch):
    from runner.dataset.digits import Digits

    made = config("train.epochs=2")
    path = stopped(made)
    before = path.read_bytes()
    if what == "code":
        edit(own / "my_losses.py", '"none")', '"none") * 2')
    else:
        load = Digits.load

        def other(self):
            found = load(self)
            self.fingerprint = "f" * 64
            return found

        monkeypatch.setattr(Digits, "load", other)
    with pytest.raises(ConfigError) as caught:
        run(made, [])
    for word in ("at step 2 of 4", "changed since", "--again", "put that back"):
        assert word in str(caught.value)
    assert path.read_bytes() == before
    assert not (path.parent / "failed.json").exists()
    if what == "code":
        edit(own / "my_losses.py", '"none") * 2', '"none")')
    monkeypatch.undo()
    monkeypatch.chdir(own)
    monkeypatch.syspath_prepend(str(own))
    assert run(made, [])["steps"] == 4


def test_another_shape_of_the_same_files_is_one_line(own):
    path = stopped(config("train.epochs=2"))
    state = torch.load(path, weights_only=True)
    name = next(iter(state["model"]))
    state["model"][name] = state["model"][name][:1]
    torch.save(state, path)
    with pytest.raises(ConfigError) as caught:
        run(config("train.epochs=2"), [])
    line = str(caught.value)
    assert "\n" not in line
    for word in (name, "does not fit", "best_val.pt", "metrics.jsonl up to epoch 1", "--again"):
        assert word in line


def test_a_run_in_use_is_not_moved(own):
    from runner.record.folder import Record

    place = Path("outputs/own/x").absolute()
    with Record(place, []), pytest.raises(ConfigError, match="in use"):
        again.move([place])
    assert again.move([place.with_name("nobody")]) == []


# ---- tabled


def test_a_sweep_does_not_average_old_and_new_code(own, capfd):
    cells = [Cell(config(f"seed={seed}"), ["loss=mine", f"seed={seed}"]) for seed in range(4)]
    for cell in cells[:2]:
        run(cell.config, cell.overrides, say=lambda *_: None)
    assert stale(cells) == {}
    edit(own / "my_helpers.py", "1.0", "100.0")
    assert set(stale(cells)) == {cell.folder for cell in cells[:2]}
    for cell in cells[2:]:
        run(cell.config, cell.overrides, say=lambda *_: None)
    new = [finished(cell.folder)["last"]["train_loss"] for cell in cells[2:]]
    folders = [cell.folder for cell in cells]

    # the table of the folder: the newest counts, the others are named
    (row,) = table(folders, metric="train_loss").rows
    assert (row.values, row.seeds) == (new, [2, 3])
    assert len(row.missing) == 2
    assert all("my_helpers.py" in line for line in row.missing)
    assert any("--again" in line for line in table(folders, metric="train_loss").rest)
    write_json(folders[0] / "environment.json", {"sessions": [{"argv": ["runner", "--config-dir", "my own", "-m"]}]})
    assert any("runner --config-dir 'my own' " in line for line in table(folders, metric="train_loss").rest)
    # of one code there is nothing to say
    (row,) = table(folders[:2], metric="train_loss").rows
    assert len(row.values) == 2
    # the end of the sweep: by what is here now, whichever is the newest
    edit(own / "my_helpers.py", "100.0", "1.0")
    capfd.readouterr()
    assert conclude(cells) == 1
    out, err = capfd.readouterr()
    assert "2/4" in out
    assert "--again=changed" in err


def test_a_table_does_not_average_two_states_of_the_data(own):
    made = [config(f"seed={seed}") for seed in range(4)]
    folders = []
    for one, print_ in zip(made, "aabb", strict=True):
        result = run(one, [], say=lambda *_: None)
        folders.append(Path("outputs/own").absolute() / result["id"])
        result["made"]["data"] = print_ * 64
        write_json(folders[-1] / "result.json", result)
    (row,) = table(folders).rows
    assert row.seeds == [2, 3]
    assert all("other data" in line for line in row.missing)
    for folder, print_ in zip(folders, "abcd", strict=True):  # what a set draws from its seed is of each seed
        result = finished(folder)
        result["made"]["data"] = print_ * 64
        write_json(folder / "result.json", result)
    (row,) = table(folders).rows
    assert row.seeds == [0, 1, 2, 3]
