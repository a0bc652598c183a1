"""The epoch that a loss may change with: that of the step, in every pass of it, alone, in a pack, of a client."""

import pytest
import torch

from runner.engine.replicas import Replicas
from runner.engine.run import run as whole
from runner.loss.evidential import Evidential
from tests.tiny import SMALL, compose, trainer

WORDS = [*SMALL, "loss=evidential", "loss.begin=1"]


@pytest.fixture
def seen(monkeypatch):
    """The epochs of the batches for which the loss was computed."""
    found, forward = [], Evidential.forward
    monkeypatch.setattr(Evidential, "forward", lambda *given: found.append(given[2].epoch) or forward(*given))
    return found


def advance(run, seen, epochs=range(3)):
    """The epochs that the loss has seen in every step."""
    steps = []
    for epoch in epochs:
        for batch in run.loader.epoch(epoch):
            seen.clear()
            run.step(batch)
            steps.append(sorted(set(seen)))
    return steps


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["train.accumulate=2", "optim=sam"],
        ["optim=sam", "sharpness.m=16"],
        ["hook=[pgd]", "hook.pgd.steps=2"],
        ["risk=adaptive_k", "hook=[mesa]", "hook.mesa.start=0"],
        ["train.precision=fp16"],
    ],
    ids=lambda words: " ".join(words[:2]) or "plain",
)
def test_every_pass_of_a_step_has_its_epoch(words, seen):
    run = trainer(*WORDS, *words)
    each = run.steps_per_epoch
    assert each > 1 and advance(run, seen) == [[step // each] for step in range(3 * each)]


def test_a_resumed_run_goes_on_in_its_epoch(seen, tmp_path):
    first, second = (trainer(*WORDS, folder=tmp_path) for _ in range(2))
    advance(first, seen, range(1))
    second.load_state_dict(first.state_dict())
    assert advance(second, seen, range(1, 2)) == [[1]] * first.steps_per_epoch


def test_runs_side_by_side_have_it(seen):
    words = [[*WORDS, f"seed={seed}", f"optim.lr=0.0{seed + 1}"] for seed in range(2)]
    pack, alone = Replicas([trainer(*own, double=True) for own in words]), [trainer(*own, double=True) for own in words]
    steps = advance(pack, seen)
    assert steps == [[step // pack.steps_per_epoch] for step in range(len(steps))]
    for k, run in enumerate(alone):
        advance(run, seen)
        torch.testing.assert_close(pack.weights.data[k], run.weights.data, rtol=0, atol=1e-10)


@pytest.mark.parametrize("chunk", [1, 4])
def test_a_client_counts_its_own_epochs_over_the_rounds(chunk, seen, tmp_path):
    words = ["federated=fedavg", "federated.clients=4", "federated.rounds=3", "federated.local_epochs=2"]
    words += [f"federated.chunk={chunk}", f"outputs_dir={tmp_path}"]
    result = whole(compose(*WORDS, *words), [], say=lambda *_: None)
    assert result["status"] == "done" and set(seen) == set(range(6))


def test_a_run_that_ends_before_says_so():
    assert not any("(begin=5)" in notice for notice in trainer(*WORDS).notices)
    (notice,) = (notice for notice in trainer(*WORDS[:-1]).notices if "(begin=5)" in notice)
    assert notice.startswith("loss=evidential: ") and notice.endswith("cross-entropy is added in every step")
