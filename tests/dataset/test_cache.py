"""What is decoded once: kept beside the files, found again, made again where it is damaged or of other files."""

import errno
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from runner.dataset.hub import Hub
from tests.dataset.made import CONF, NAMES, TEST, TRAIN, load, same, write


def never(*_):
    raise AssertionError("decoded again")


def entry(folder):
    (found,) = [path for path in (folder / "cache").iterdir() if path.is_dir()]
    return found


def test_second_start_reads_the_cache(folder, monkeypatch):
    first = load(folder)
    monkeypatch.setattr(Hub, "_decode", never)
    assert same(first, load(folder))


def test_changed_source_or_settings_are_decoded_again(folder):
    first = load(folder)
    assert load(folder, size=4).shape == (3, 4, 4)
    path = folder / "data" / "tiny" / "test-00000-of-00001.parquet"
    before = path.stat().st_mtime_ns
    write(path, TEST[::-1], np.arange(10) % 3, names=NAMES)
    os.utime(path, ns=(before + 10**9,) * 2)  # later, however coarse the clock of the file system is
    second = load(folder)
    assert np.array_equal(second.test.x.numpy(), TEST[::-1].transpose(0, 3, 1, 2))
    assert first.fingerprint != second.fingerprint


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "missing", "meta", "half meta", "other size"])
def test_damaged_cache_is_made_again(folder, caplog, damage):
    first = load(folder)
    pixels, meta = entry(folder) / "train_x.npy", entry(folder) / "meta.json"
    match damage:
        case "truncated":
            pixels.write_bytes(pixels.read_bytes()[:-100])
        case "empty":
            pixels.write_bytes(b"")
        case "garbage":
            pixels.write_bytes(b"\0" * 500)
        case "missing":
            pixels.unlink()
        case "meta":
            meta.write_text("{")
        case "half meta":
            meta.write_text(json.dumps({"shapes": {}}))
        case "other size":
            np.save(pixels, np.zeros((39, 3, 6, 5), np.uint8))
    with caplog.at_level(logging.WARNING):
        assert same(first, load(folder))
    assert all("damaged" in record.message and "\n" not in record.message for record in caplog.records)
    assert caplog.records
    caplog.clear()
    assert same(first, load(folder))
    assert not caplog.records


@pytest.mark.parametrize("fault", ["disk full", "no folder"])
def test_without_a_cache_the_run_goes_on(folder, monkeypatch, caplog, fault):
    expected = load(folder)
    settings = {"cache_dir": str(folder / "elsewhere")}
    if fault == "no folder":
        (folder / "file").write_text("")
        settings = {"cache_dir": str(folder / "file" / "cache")}
    else:

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(np, "save", full)
    with caplog.at_level(logging.WARNING):
        assert same(expected, load(folder, **settings))
    (record,) = caplog.records
    assert "going on without" in record.message
    assert "\n" not in record.message
    if fault == "disk full":
        assert not [path for path in (folder / "elsewhere").iterdir() if path.is_dir()]


def _job(folder, barrier, results):
    decode = Hub._decode

    def counted(self, files):
        with open(folder / "decoded", "a") as out:
            out.write("x")
        time.sleep(0.3)  # the other job is waiting by now
        return decode(self, files)

    Hub._decode = counted
    barrier.wait()
    dataset = load(folder)
    results.put((dataset.fingerprint, int(dataset.train.x.sum()), len(dataset.test)))


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_concurrent_jobs_decode_once(folder):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    jobs = [context.Process(target=_job, args=(folder, barrier, results), daemon=True) for _ in range(2)]
    for job in jobs:
        job.start()
    found = [results.get(timeout=60) for _ in jobs]
    for job in jobs:
        job.join(60)
        assert job.exitcode == 0
    assert found[0] == found[1]
    assert found[0][1:] == (int(TRAIN.sum(dtype=np.int64)), 10)
    assert (folder / "decoded").read_text() == "x"
    assert not list((folder / "cache").glob("*.partial"))


def test_warm_start_imports_nothing_heavy(folder):
    load(folder)
    code = f"""
import sys
from runner.dataset.digits import Digits
from runner.dataset.hub import Hub
Digits().prepare()
Hub(id="someone/tiny", val=0.0, data_dir={str(folder / "data")!r}, cache_dir={str(folder / "cache")!r}).prepare()
print(sorted({{"sklearn", "datasets", "PIL", "pandas", "pyarrow", "torchvision", "filelock"}} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=CONF.parent.parent, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    # torch itself may import filelock
    assert result.stdout.strip() in ("[]", "['filelock']")
