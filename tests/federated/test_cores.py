"""Clients on several cores: nothing changes, and what is killed, breaks or stops is met."""

import multiprocessing
import os
import signal
import time

import pytest
import torch

from runner.core import checkpoint
from runner.engine.run import run as run_config
from runner.federated.clients import Clients
from runner.federated.cores import spread
from runner.record.folder import Died, Stopped
from tests.federated.made import ALGORITHMS, SKEWED, federation, rounds
from tests.tiny import compose


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("chunk", [1, 4])
def test_processes_change_nothing(name, chunk, cores, monkeypatch):
    """Bit for bit: weights, buffers, the record's sums and learning rate."""
    words = [*SKEWED, "hook=clip", f"federated={name}", "federated.rounds=2", f"federated.chunk={chunk}"]
    ends = []
    for least in (0.0, 1e9):
        monkeypatch.setattr("runner.federated.cores.FORK", least)
        before = cores()
        run, algorithm = federation(*words, double=False)
        rounds(run, algorithm)
        assert (cores() - before > 0) == (least == 0.0)
        ends.append(
            (run.weights.clone(), algorithm.buffers, run.sums(), run.optimizer.param_groups[0]["lr"], run.report)
        )
    (w, buffers, sums, lr, report), (w2, buffers2, sums2, lr2, report2) = ends
    assert torch.equal(w, w2) and torch.equal(sums, sums2) and lr == lr2 and report == report2
    assert all(torch.equal(a, b) for a, b in zip(buffers, buffers2, strict=True))


@pytest.mark.parametrize(
    "words",
    [["loss=elr"], ["risk=adaptive_k"], ["train.precision=fp16"], ["federated.clients=1"]],
    ids=["a loss's memory", "a risk's memory", "a loss scale", "one client"],
)
def test_what_leaves_something_behind_stays_in_one_process(words, cores):
    run, algorithm = federation(*SKEWED, "federated=fedavg", "federated.rounds=2", "federated.chunk=1", *words)
    rounds(run, algorithm)
    assert cores() == 0


def test_a_poisoned_client_is_refused_by_its_process(cores):
    run, algorithm = federation(*SKEWED, "federated=fedavg", "federated.rounds=2", "federated.chunk=1")
    run.loader._train.base = base = run.loader._train.base.clone().double()
    own = algorithm.clients.rows[2][:1]
    base[own if run.loader._train.rows is None else run.loader._train.rows[own]] = float("nan")
    said = []
    run.tell = said.append
    rounds(run, algorithm)
    assert [line.partition(" is refused: ")[0] for line in said] == ["round 1: client 2", "round 2: client 2"]
    assert "the inputs of the batch" in said[0] and cores() > 0
    assert run.report["clients"] == 5 and torch.isfinite(run.weights.data).all()


@pytest.mark.parametrize("kills, of", [(1, [3]), (1, range(6)), (2, [3])], ids=["one", "every client's", "twice"])
def test_a_process_that_is_killed(kills, of, cores, monkeypatch, tmp_path):
    """Once: its client trains again, to the same bits. Twice: one line."""
    words = [*SKEWED, "federated=scaffold", "federated.rounds=2", "federated.chunk=1"]
    whole, undisturbed = federation(*words, double=False)
    rounds(whole, undisturbed)
    run, algorithm = federation(*words, double=False)
    here, alone, said = os.getpid(), algorithm.clients.alone, []
    run.tell = said.append

    def fatal(client, *rest):
        done = alone(client, *rest)
        mark = tmp_path / f"{client} {len(list(tmp_path.glob(f'{client} *')))}"
        if os.getpid() != here and client in of and mark.name[-1] != str(kills):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    monkeypatch.setattr(algorithm.clients, "alone", fatal)
    if kills == 2:
        with pytest.raises(Died) as error:
            rounds(run, algorithm)
        assert str(error.value) == (
            "2 processes that trained client 3 were killed (exit code -9; -9 is often a lack of memory); "
            "OMP_NUM_THREADS=1 trains all in this one"
        )
    else:
        rounds(run, algorithm)
        assert torch.equal(run.weights.data, whole.weights.data) and torch.equal(run.sums(), whole.sums())
        assert torch.equal(algorithm.c, undisturbed.c) and run.report == whole.report
    line = "a process that trained client 3 was killed (exit code -9; -9 is often a lack of memory): once more"
    assert line in said and len(said) == len(list(tmp_path.iterdir())) - (kills == 2)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("count", [1, 3])
def test_idle_processes_that_are_killed(count, tmp_path):
    """Whatever they have in hand, or nothing, or are sending: every task is done once, and in its order."""
    said, found, killed = [], [], tmp_path / "killed"

    def work(task):
        while task[0] > 6 and not killed.exists():  # so that something is left to do, however fast the processes are
            time.sleep(0.01)
        return task[0], torch.zeros(50_000)

    for done in spread(work, [[k] for k in range(9)], count, lambda: None, said.append):
        found.append(done[0])
        if len(found) == 4:
            for process in multiprocessing.active_children():
                os.kill(process.pid, signal.SIGKILL)
                process.join()
            killed.touch()
    assert found == list(range(9)) and said
    assert not multiprocessing.active_children()


def test_an_error_in_a_process_is_the_runs(cores, monkeypatch):
    run, algorithm = federation(*SKEWED, "federated=fedavg", "federated.rounds=1", "federated.chunk=1")
    here, alone = os.getpid(), algorithm.clients.alone

    def broken(client, *rest):
        if os.getpid() != here and client == 3:
            raise ZeroDivisionError("three")
        return alone(client, *rest)

    monkeypatch.setattr(algorithm.clients, "alone", broken)
    with pytest.raises(ZeroDivisionError, match="three"):
        rounds(run, algorithm)
    assert not multiprocessing.active_children()


def test_stopped_while_processes_train(cores, tmp_path, monkeypatch):
    """A signal ends the wait; the run goes on later and is the run that was never stopped."""
    words = [*SKEWED, "federated=scaffold", "federated.rounds=2", "federated.chunk=1"]
    whole = run_config(compose(*words, f"outputs_dir={tmp_path / 'whole'}"), [], say=lambda *_: None)
    config = compose(*words, f"outputs_dir={tmp_path / 'parts'}")
    here, alone = os.getpid(), Clients.alone

    def slow(self, client, *rest):
        if os.getpid() != here and client == 4:
            os.kill(here, signal.SIGTERM)
            time.sleep(600)
        return alone(self, client, *rest)

    begun = time.perf_counter()
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Clients, "alone", slow)
        run_config(config, [], say=lambda *_: None)
    assert time.perf_counter() - begun < 300 and not multiprocessing.active_children()
    parts = run_config(config, [], say=lambda *_: None)
    apart = ("seconds", "images_per_second")
    assert {k: v for k, v in parts["last"].items() if k not in apart} == {
        k: v for k, v in whole["last"].items() if k not in apart
    }
    a, b = (checkpoint.load(next((tmp_path / kind).glob("runs/*/last.pt"))) for kind in ("whole", "parts"))
    assert all(torch.equal(value, b["model"][key]) for key, value in a["model"].items())
