"""How many workers, where, and which runs together."""

import os
from pathlib import Path

import torch

from runner.sweep import pack, pool
from runner.sweep.cells import distinct
from runner.sweep.outcome import Outcome
from runner.sweep.places import cores, leases, threads, visible
from runner.sweep.tasks import tasks
from tests.sweep.pooled import Silent, cell, go, hook, statuses, sweep


def test_workers_are_dealt_to_the_gpus_in_turn():
    assert leases(["auto"], sweep(), ["0", "1"], 8) == ["0", "1"]
    assert leases(["cuda"], sweep(jobs_per_gpu=2), ["0", "1"], 8) == ["0", "1", "0", "1"]
    assert leases(["auto", "auto"], sweep(jobs=3), ["GPU-5a", "GPU-6b"], 8) == ["GPU-5a", "GPU-6b", "GPU-5a"]
    assert leases(["auto"], sweep(), [], 4) == [None] * 4
    assert leases(["cpu"], sweep(), ["0"], 4) == [None] * 4
    assert leases(["cpu"], sweep(jobs=3), ["0"], 4) == [None] * 3
    assert leases(["cuda:1"], sweep(jobs_per_gpu=2), ["0", "1"], 8) == [None] * 2


def test_a_gpu_is_named_as_the_environment_names_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5a, GPU-6b,7")  # the third one is not there
    assert visible() == ["GPU-5a", "GPU-6b"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible() == []


def test_workers_share_the_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [threads(8, workers) for workers in (1, 2, 3, 8, 20)] == [8, 4, 2, 1, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "2,1")
    assert [threads(8, workers) for workers in (1, 2, 8)] == [2, 2, 1]
    assert 1 <= cores() <= os.cpu_count()


def test_a_lease_reaches_the_worker(place, monkeypatch):
    """No GPU is needed to see what the worker would have seen."""
    monkeypatch.setattr(pool, "visible", lambda: ["GPU-5a"])
    each = cell(hook("Loud"), "device=auto")
    assert statuses(go([each], jobs=1), [each]) == ["done"]
    assert "the depths of GPU-5a" in (place / "sweep" / "worker-1.log").read_text()


def fake_groups(monkeypatch, *sizes: int):
    from runner.sweep import pack

    def groups(cells):
        found, start = [], 0
        for size in sizes:
            found.append(cells[start : start + size])
            start += size
        return found

    monkeypatch.setattr(pack, "groups", groups)


def test_a_group_is_cut_for_all_workers(monkeypatch):
    fake_groups(monkeypatch, 1, 7, 2)
    cells = list(range(10))

    def cut(workers=3, **settings):
        return [(len(task.cells), task.group) for task in tasks(cells, pack.groups(cells), sweep(**settings), workers)]

    assert cut() == [(3, 1), (3, 1), (1, None), (1, None), (1, None), (1, None)]
    assert cut(workers=1) == [(7, 1), (2, 2), (1, None)]
    assert cut(pack=4) == [(4, 1), (3, 1), (2, 2), (1, None)]
    assert cut(pack="off") == [(1, None)] * 10


def test_what_cannot_be_packed_is_run_one_by_one_and_said_once(place, monkeypatch, capfd):
    fake_groups(monkeypatch, 4, 2)
    cells = [cell(f"seed={seed}") for seed in range(6)]
    outcome = Outcome()
    outcome.update((each.folder, "missing") for each in cells)
    host = pool._Pool(cells, sweep(jobs=2, pack=2), Path("sweep"), outcome)
    first, second = Silent(), Silent()
    for worker in (first, second):
        host._next(worker)
    assert [task.cells for task in (*first.given, *second.given)] == [cells[:2], cells[2:4]]
    host._message(first, "apart", "dropout draws from one generator")
    host._message(first, "idle")
    assert first.given[-1].cells == cells[4:]  # the other group may still be packed
    assert [task.cells for task in host.queue] == [[cells[0]], [cells[1]]]
    host._message(second, "ended", 0, "done", "")
    host._message(second, "apart", "dropout draws from one generator")
    host._message(second, "idle")
    assert second.given[-1].cells == [cells[0]]
    assert [task.cells for task in host.queue] == [[cells[1]], [cells[3]]]  # cells[2] was done
    assert capfd.readouterr().out.count("dropout draws from one generator") == 1
    assert host.queue[0].group is None


def test_packs_are_trained(place, capfd):
    cells = [cell(f"seed={seed}", "model.hidden=[4]") for seed in range(4)]
    assert set(go(cells, pack=2).values()) == {"done"}
    assert capfd.readouterr().out.count("] done ") == 4


def test_distinct_keeps_the_first():
    cells = [cell("seed=0"), cell("seed=1"), cell("seed=0", "device=auto")]
    assert distinct(cells) == cells[:2]
