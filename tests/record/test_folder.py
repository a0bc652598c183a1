import errno
import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from runner.record.curves import COLOURS, draw
from runner.record.files import finished, history, read_config, write_atomic
from runner.record.folder import Record
from tests.conftest import ROOT
from tests.record.made import CONFIG, RESULT, Spy, line, strict


def test_a_run_from_start_to_finish(folder):
    spy = Spy()
    with Record(folder, [spy]) as record:
        assert finished(folder) is None
        record.start(CONFIG, ["loss=poly", "hook=[ema,clip]"], None)
        record.log(line(1, test_accuracy=0.25, test_nll=2.0))
        record.log(line(2, test_accuracy=0.5, test_nll=1.0))
        assert record.lines == 2
        assert not (folder / "result.json").exists()
        record.finish(RESULT)
    assert yaml.safe_load((folder / ".hydra" / "config.yaml").read_text()) == CONFIG == read_config(folder)
    assert yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text()) == ["loss=poly", "hook=[ema,clip]"]
    records = [line(1, test_accuracy=0.25, test_nll=2.0), line(2, test_accuracy=0.5, test_nll=1.0)]
    assert [strict(text) for text in (folder / "metrics.jsonl").read_text().splitlines()] == records
    assert history(folder) == records
    assert strict((folder / "result.json").read_text()) == RESULT == finished(folder)
    png = (folder / "curves.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", png[16:24]) == (1200, 360)
    assert spy.calls == [
        ("start", "0123abcdef", False),
        *(("log", record) for record in records),
        ("finish", "done", RESULT),
    ]
    (entry,) = (folder.parent / "index.txt").read_text().splitlines()
    assert entry.startswith("0123abcdef  20")
    assert entry.endswith("loss=poly 'hook=[ema,clip]'")
    assert not list(folder.glob(".*.tmp"))
    assert not (folder / ".lock.owner").exists()


def test_result_is_written_last(folder, monkeypatch):
    order, replace = [], os.replace

    def noted(source, target):
        order.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", noted)
    with Record(folder, []) as record:
        record.start(CONFIG, [], None)
        record.log(line(1))
        record.finish(RESULT)
    assert order[-2:] == ["curves.png", "result.json"]


def test_a_picture_that_fails_does_not_fail_the_run(folder, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "runner.record.curves", None)  # an import of it fails
    with Record(folder, []) as record:
        record.start(CONFIG, [], None)
        record.finish(RESULT)
    assert finished(folder) == RESULT
    assert "curves.png" in caplog.text


def test_non_finite_numbers_are_null_and_foreign_ones_plain(folder):
    spy = Spy()
    with Record(folder, [spy]) as record:
        record.start(CONFIG, [], None)
        record.log(
            {
                "step": np.int64(7),
                "a": float("nan"),
                "b": float("inf"),
                "c": torch.tensor(0.5),
                "d": np.float32(0.25),
                "e": torch.tensor(float("-inf")),
                "f": 3,
                "g": np.bool_(True),
            }
        )
    plain = {"step": 7, "a": None, "b": None, "c": 0.5, "d": 0.25, "e": None, "f": 3, "g": True}
    assert strict((folder / "metrics.jsonl").read_text()) == plain
    assert spy.calls[1] == ("log", {"step": 7, "c": 0.5, "d": 0.25, "f": 3, "g": True})  # numbers only


def test_resume_drops_what_is_computed_again(folder):
    with Record(folder, []) as record:
        record.start(CONFIG, ["seed=3"], None)
        for epoch in range(1, 6):
            record.log(line(epoch))
    first = json.loads((folder / "environment.json").read_text())["sessions"]
    whole = (folder / "metrics.jsonl").read_bytes()
    with open(folder / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 60, "ep')  # killed while it wrote
    spy = Spy()
    with Record(folder, [spy]) as record:
        assert len(record.history()) == 5
        record.start(CONFIG, ["seed=3"], 3)
        assert record.lines == 3
        assert (folder / "metrics.jsonl").read_bytes() == b"".join(whole.splitlines(keepends=True)[:3])
        record.log(line(4))
        record.log(line(5))
        assert record.lines == 5
    assert (folder / "metrics.jsonl").read_bytes() == whole
    assert spy.calls[0] == ("start", "0123abcdef", True)
    sessions = json.loads((folder / "environment.json").read_text())["sessions"]
    assert sessions[:1] == first
    assert [session["resumed_lines"] for session in sessions] == [None, 3]
    assert len((folder.parent / "index.txt").read_text().splitlines()) == 2
    with Record(folder, []) as record:  # from the beginning again: nothing is kept
        record.start(CONFIG, [], None)
        assert record.lines == 0
    assert history(folder) == []


def test_fewer_lines_than_the_checkpoint_knows_are_said(folder):
    with Record(folder, []) as record:
        record.start(CONFIG, [], None)
        record.log(line(1))
    with Record(folder, []) as record:
        record.start(CONFIG, [], 4)
        assert record.lines == 1
        assert "holds 1 of the 4 lines" in record.lost


@pytest.mark.parametrize("torn", [b'{"step": 3', b'{"step": 3\n', b"\0\0\0\n"])
def test_history_drops_one_torn_last_line(folder, torn):
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"step": 2}\n' + torn)
    assert history(folder) == [{"step": 1}, {"step": 2}]


def test_history_reports_damage_elsewhere(folder):
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2"):
        history(folder)


def test_a_full_disk_leaves_no_half_line(folder):
    resource = pytest.importorskip("resource", reason="limits on file sizes are POSIX")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Record(folder, []) as record:
        record.start(CONFIG, [], None)
        record.log(line(1))
        record.log(line(2))
        size = (folder / "metrics.jsonl").stat().st_size
        # the system takes the first 20 bytes of the third line and refuses the rest, as a full disk does
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, limits[1]))
        try:
            with pytest.raises(OSError, match=r"cannot write .*metrics\.jsonl") as caught:
                record.log(line(3))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert caught.value.errno == errno.EFBIG
        assert "\n" not in str(caught.value)
        assert (folder / "metrics.jsonl").stat().st_size == size
        assert record.lines == 2
        record.log(line(3))  # room again
    assert history(folder) == [line(1), line(2), line(3)]


def test_write_atomic_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_atomic(path, "old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*result\.json: No space left") as caught:
        write_atomic(path, "new")
    assert caught.value.errno == errno.ENOSPC
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    write_atomic(path, b"new")
    assert path.read_text() == "new"


HOLDER = """
import sys, time
from pathlib import Path
from runner.record.folder import Record
with Record(Path(sys.argv[1]), []) as record:
    record.start({"device": "cpu"}, [], None)
    record.log({"step": 1})
    print("ready", flush=True)
    time.sleep(60)
"""


def test_the_lock_keeps_a_second_process_out_and_dies_with_the_first(folder):
    command = [sys.executable, "-c", HOLDER, str(folder)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert child.stdout.readline() == "ready\n"
        with pytest.raises(ValueError, match=f"process {child.pid} on {socket.gethostname()}") as caught:
            Record(folder, []).__enter__()
        assert "\n" not in str(caught.value)
        with Record(folder.with_name("other"), []):  # another run's folder is free
            pass
        child.kill()
        child.wait()
        with Record(folder, []) as record:
            assert record.history() == [{"step": 1}]
            with pytest.raises(ValueError, match=f"process {os.getpid()} on"):
                Record(folder, []).__enter__()
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    with Record(folder, []):  # given back
        pass


def colours(path: Path) -> dict[str, int]:
    """How many pixels of the picture have exactly each line's colour."""
    from PIL import Image

    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    wanted = {name: tuple(bytes.fromhex(colour[1:])) for name, colour in COLOURS.items()}
    return {name: int((pixels == np.array(colour)).all(1).sum()) for name, colour in wanted.items()}


def test_curves_show_what_was_measured(tmp_path):
    path = tmp_path / "curves.png"
    one = {"step": 5, "epoch": 1, "lr": 0.1, "train_loss": 2.0, "train_accuracy": 0.1, "test_nll": 2.1}
    draw([one], path)
    found = colours(path)
    assert found["val"] == 0
    assert min(found["train"], found["test"], found["lr"]) > 30
    # points far apart, with gaps between them, are joined
    gaps = [{**one, "epoch": e, "step": 5 * e, "test_nll": 2.0 if e in (1, 40) else None} for e in range(1, 41)]
    draw(gaps, path)
    joined = colours(path)["test"]
    draw([{**record, "test_nll": None} for record in gaps], path)
    assert colours(path)["test"] == 0
    assert joined > 150  # two points alone are some 40
    draw([{"step": 1, "epoch": 1, "lr": 0.1, "train_loss": 2.0, "test_mae": 1.0, "test_rmse": None}], path)
    assert colours(path)["test"] > 15
    draw([], path)
    assert max(colours(path)[name] for name in ("train", "val", "test")) == 0
