"""Every file of a run's folder damaged in five ways: what reads it ends in a right result or in one line."""

import contextlib
import os
import resource
import shutil
from pathlib import Path

import pytest
import torch

from runner.__main__ import main
from runner.core.mistake import ConfigError
from runner.engine import start
from runner.engine.run import run
from runner.engine.trainer import Trainer
from runner.record import export
from runner.record.files import finished
from runner.record.folder import Stopped
from runner.record.identity import identity
from runner.sweep import table
from tests.tiny import Forked, compose

TINY = ["dataset.subset=64", "train.batch_size=32", "train.epochs=2", "model.hidden=[4]", "device=cpu", "seed=3"]
KINDS = {
    "plain": [],
    "quantized": ["quantization=ptq"],
    "federation": ["federated=fedavg", "federated.clients=3", "federated.rounds=2", "federated.chunk=1"],
}
FILES = [
    (kind, name)
    for kind, names in {
        "plain": ["last.pt", "best_val.pt", "best_test.pt", "result.json", "environment.json", "failed.json",
                  "metrics.jsonl", ".hydra/config.yaml", ".hydra/overrides.yaml"],
        "quantized": ["quantized.pt"],
        "federation": ["partition.npz", "participation.json"],
    }.items()
    for name in names
]  # fmt: skip


def quiet(*_) -> None: ...


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Kind -> (its overrides, its finished run, the same stopped after its first epoch or round)."""
    found, end = {}, Trainer.end_epoch

    def then_stop(self, rate):
        end(self, rate)
        self.stop = "SIGTERM"

    for kind, words in KINDS.items():
        folders = []
        for begun in (False, True):
            place = tmp_path_factory.mktemp(kind)
            with pytest.MonkeyPatch.context() as patch:
                if begun:
                    patch.setattr(Trainer, "end_epoch", then_stop)
                with pytest.raises(Stopped) if begun else contextlib.nullcontext():
                    run(compose(*TINY, *words) | {"outputs_dir": str(place)}, [*TINY, *words], say=quiet)
            (folder,) = [path for path in (place / "runs").iterdir() if path.is_dir()]
            folders.append(folder)
        found[kind] = ([*TINY, *words], *folders)
    return found


def damage(path: Path, how: str) -> None:
    content = path.read_bytes() if path.exists() else b'{"status": "failed"}'
    path.unlink(missing_ok=True)
    if how == "folder":
        path.mkdir()
    elif how == "wrong type":
        if path.suffix == ".pt":
            torch.save([1, 2], path)
        elif path.suffix == ".npz":
            path.write_bytes(b"PK\x05\x06" + 18 * b"\0")  # an archive with nothing in it
        else:
            path.write_text("[1, 2]\n[3, 4]\n")
    elif how != "missing":
        path.write_bytes({"empty": b"", "torn": content[: len(content) // 2], "garbage": bytes(range(256)) * 4}[how])


HOW = ["empty", "torn", "garbage", "wrong type", "folder", "missing"]


def same(result: dict, right: dict) -> None:
    for key in ("last", "best_val", "best_test"):
        apart = ("seconds", "images_per_second")
        a, b = ({k: v for k, v in (one[key] or {}).items() if k not in apart} for one in (result, right))
        yield key, a, b


def one_line(error: BaseException, capfd) -> str:
    said = str(error) if not isinstance(error, SystemExit) else capfd.readouterr().err
    assert said.strip()
    assert "\n" not in said.strip()
    return said


@pytest.mark.parametrize(("kind", "name"), FILES, ids=[name for _, name in FILES])
@pytest.mark.parametrize("how", HOW)
def test_a_damaged_file_of_a_run_that_is_to_go_on(whole, tmp_path, kind, name, how, caplog):
    words, done, begun = whole[kind]
    right = finished(done)
    place = tmp_path / "runs" / begun.name
    shutil.copytree(begun, place)
    damage(place / name, how)
    config = compose(*words) | {"outputs_dir": str(tmp_path)}
    try:
        result = run(config, words, say=quiet)
    except (ConfigError, OSError) as error:
        said = one_line(error, None)
        assert name.rpartition("/")[2] in said
        if name == "last.pt":
            assert "best_val.pt" in said
            assert "metrics.jsonl up to epoch 1" in said
            assert "--again" in said
        return
    for key, a, b in same(result, right):
        if key == "last" or name not in ("metrics.jsonl", "last.pt", "best_val.pt"):
            assert a == b, key
    assert ("there is no last.pt to go on from" in caplog.text) == (name == "last.pt")
    if name == "metrics.jsonl" and key:
        assert any("metrics.jsonl" in line for line in result["notices"])
    if name == "best_val.pt" and result["best_val"]["epoch"] == 1:
        assert any("best_val.pt" in line for line in result["notices"])


@pytest.mark.parametrize("foreign", ["quantized", "plain, another lr", "format", "best_val.pt"])
def test_a_checkpoint_of_another_run_or_version_is_named(whole, tmp_path, foreign):
    words, _, begun = whole["plain"]
    place = tmp_path / "runs" / begun.name
    shutil.copytree(begun, place)
    if foreign == "quantized":
        shutil.copy(whole["quantized"][2] / "last.pt", place / "last.pt")
        said = "last.pt is of another run"
    elif foreign == "format":
        torch.save(torch.load(place / "last.pt", weights_only=True) | {"format": 99}, place / "last.pt")
        said = "last.pt is of format 99"
    elif foreign == "best_val.pt":
        shutil.copy(place / "best_val.pt", place / "last.pt")
        said = "last.pt does not hold the state of a run"
    else:
        words = [*words, "optim.lr=0.123"]
        place.rename(place.with_name(identity(compose(*words))))
        said = f"last.pt is of another run, {begun.name}"
    before = (tmp_path / "runs" / identity(compose(*words)) / "last.pt").read_bytes()
    with pytest.raises(ConfigError, match=said) as caught:
        run(compose(*words) | {"outputs_dir": str(tmp_path)}, words, say=quiet)
    assert "best_val.pt" in one_line(caught.value, None)
    assert (tmp_path / "runs" / identity(compose(*words)) / "last.pt").read_bytes() == before


@pytest.mark.parametrize(("kind", "name"), FILES, ids=[name for _, name in FILES])
@pytest.mark.parametrize("how", HOW)
def test_a_damaged_file_of_a_run_that_is_done(whole, tmp_path, kind, name, how, capfd):
    words, done, _ = whole[kind]
    right = finished(done)
    place = tmp_path / "runs" / done.name
    shutil.copytree(done, place)
    damage(place / name, how)
    if name == "result.json" and how == "missing":
        return  # that is a run that is to go on
    config = compose(*words) | {"outputs_dir": str(tmp_path)}
    refused = None
    try:
        assert run(config, words, say=quiet) == right
    except ConfigError as error:
        refused = one_line(error, None)
    assert (refused is None) == (name != "result.json")
    assert name in (refused or name)
    table_of = command(table.main, [str(tmp_path / "runs")], capfd)
    assert f"{100 * right['last']['test_accuracy']:.2f}" in table_of or name in table_of
    command(export.main, [str(place), "--to", "tensorboard"], capfd)
    try:
        start.Start(str(place))
    except ConfigError as error:
        one_line(error, None)


@pytest.mark.parametrize("content", [
    "{}", '{"last": []}', '{"last": {"test_accuracy": "x"}}', '{"last": {"test_accuracy": NaN}}',
    '{"last": {"test_accuracy": 0.5}, "best_val": 3}',
])  # fmt: skip
def test_a_result_that_is_a_mapping_without_measures_is_damaged(whole, tmp_path, content, capfd):
    words, done, _ = whole["plain"]
    place = tmp_path / "runs" / done.name
    shutil.copytree(done, place)
    (place / "result.json").write_text(content)
    with pytest.raises(ConfigError) as caught:
        run(compose(*words) | {"outputs_dir": str(tmp_path)}, words, say=quiet)
    assert "result.json is damaged: " in one_line(caught.value, None)
    assert "result.json is damaged: " in command(table.main, [str(tmp_path / "runs")], capfd)


def command(tool, words: list[str], capfd) -> str:
    """What it prints, or the one line of its refusal."""
    capfd.readouterr()
    try:
        tool(words)
    except SystemExit as error:
        status, said = error.code, one_line(error, capfd)
        assert status == 2
        return said
    return capfd.readouterr().out


# ---- the disk and the environment


def refused(words: list[str], capfd) -> tuple[int, str]:
    """The exit status of a command and the one line that it ends with."""
    capfd.readouterr()
    status = main(words)
    (line,) = capfd.readouterr().err.splitlines()
    return status, line


@pytest.mark.parametrize("words", [[], ["-m", "seed=0,1", "sweep.jobs=1"]], ids=["run", "sweep"])
@pytest.mark.parametrize("what", ["outputs_dir", "name", "id"])
def test_a_file_where_a_folder_should_be_is_one_line(tmp_path, capfd, words, what):
    place = {"outputs_dir": "o", "name": "o/runs", "id": f"o/runs/{identity(compose(*TINY, 'seed=0'))}"}[what]
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_text("")
    if what == "id" and words:
        return  # the run's own trouble, in a worker
    status, line = refused([*TINY, "seed=0", *words, f"outputs_dir={tmp_path}/o"], capfd)
    assert status in (1, 2)
    assert str(tmp_path / place) in line


def test_a_path_too_long_for_the_disk_is_one_line(tmp_path, capfd):
    status, line = refused([*TINY, f"outputs_dir={tmp_path}/{300 * 'x'}"], capfd)
    assert status in (1, 2)
    assert "too long" in line


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 without RANK"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "without MASTER_ADDR"),
        ({"WORLD_SIZE": "two", "RANK": "0"}, "WORLD_SIZE=two"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE="),
        ({"RANK": "first"}, "RANK=first"),
        ({"RANK": "5", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "RANK=5"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK=-1"),
    ],
)
@pytest.mark.parametrize("words", [[], ["-m", "seed=0,1"], ["+experiment=li2022/mnist"]], ids=["run", "sweep", "table"])
def test_half_of_what_torchrun_sets_is_one_line(tmp_path, capfd, monkeypatch, environment, said, words):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    status, line = refused([*TINY, *words, f"outputs_dir={tmp_path}"], capfd)
    assert status == 2
    assert said in line


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_is_full_at_any_write_is_one_line_and_nothing_is_lost(whole, tmp_path, kind):
    """The system refuses files beyond a size, as a full disk does: the smaller the size, the earlier the write."""
    words, done, begun = whole[kind]
    place = tmp_path / "runs" / begun.name
    statuses = []
    for size in (100, 1000, 3000, 5000, 20000, 40000):
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
        shutil.copytree(begun, place)
        read, write = os.pipe()

        def call(size=size) -> int:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            return main([*words, f"outputs_dir={tmp_path}"])

        child = Forked(call, tmp_path, stdout=os.open(os.devnull, os.O_WRONLY), stderr=write)
        os.close(write)
        statuses.append(child.wait())
        with open(read) as file:
            said = [line for line in file.read().splitlines() if "was not drawn" not in line]
        assert statuses[-1] in (0, 1), said
        assert len(said) == statuses[-1], said
        assert all("cannot" in line and str(place.parent) in line for line in said), said
        if statuses[-1]:
            assert finished(place) is None
            result = run(compose(*words) | {"outputs_dir": str(tmp_path)}, words, say=quiet)
            assert all(a == b for _, a, b in same(result, finished(done)))
    assert statuses[0] == 1
