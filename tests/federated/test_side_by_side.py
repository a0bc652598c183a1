"""Clients side by side are clients one after another; each draws its own."""

import copy
import re

import pytest
import torch

from runner.core import keyed, padding
from runner.federated.crew import Crew
from tests.balance.made import words as objectives
from tests.federated.made import ALGORITHMS, NORMED, SKEWED, federation, rounds
from tests.tiny import ROOT, trainer

# ---- what is drawn

DRAWING = {  # what draws for a batch and not for a sample, and what is known of it by its purpose
    "runner/augment/mixup.py": (["augment=mixup"], "mixup"),
    "runner/quantization/eq_net.py": (["quantization=eq_net", "quantization.ends=same"], "eq_net"),
    "runner/quantization/adapt.py": (["quantization=adapt"], "dropout"),
    "runner/loss/elasticface.py": (["loss=elasticface"], "dropout"),
    "runner/engine/estimated.py": (["gradient=forward"], "gradient"),
    "runner/engine/rows.py": (objectives("terms", "pcgrad"), "balance"),
    "runner/core/dropout.py": (["model=wrn_16_8", "model.widen=1", "model.dropout=0.3"], "dropout"),
}

# These draw before training begins, for the server, or, as the order of an epoch, for all clients at once on purpose
OTHERS = {"runner/augment/__init__.py", "runner/dataset/__init__.py", "runner/dataset/colored_mnist.py"}

OTHERS |= {
    "runner/dataset/multi_digits.py",
    "runner/dataset/multi_mnist.py",
    "runner/dataset/gaussians25.py",
    "runner/dataset/digit_masks.py",
    "runner/dataset/loader.py",
    "runner/engine/assemble.py",
    "runner/engine/trial.py",
}

OTHERS |= {f"runner/sampler/{name}.py" for name in ("__init__", "single", "classes")}  # of the run's data: refused
OTHERS |= {f"runner/federated/{name}.py" for name in ("clients", "fedavg", "fedlex", "partition")}


def test_whatever_draws_for_a_batch_is_known():
    draws = re.compile(r"draw\.generator|keyed\.generator|dropout import.*\buniform|masks\.draw")
    found = {str(p.relative_to(ROOT)) for p in (ROOT / "runner").rglob("*.py") if draws.search(p.read_text())}
    assert found - OTHERS == set(DRAWING)


@pytest.mark.parametrize("module", DRAWING)
def test_every_client_draws_its_own_and_the_same_one_the_same(module, monkeypatch):
    words, purpose = DRAWING[module]
    words = [
        "device=cpu",
        "dataset.subset=60",
        "train.batch_size=16",
        *words,
        "federated=fedavg",
        "federated.clients=2",
    ]
    run, made = federation(*words, "federated.rounds=2", "federated.chunk=1", double=False)
    plain, found = keyed.generator, []

    def spied(seed, what, *keys):
        if what.startswith(purpose):
            found[-1].append((seed, what, *keys))
        return plain(seed, what, *keys)

    monkeypatch.setattr(keyed, "generator", spied)
    ends = []
    for client in (0, 1, 1, 0):
        found.append([])
        ends.append(made.clients.alone(client, 1, made.weights.data, made.buffers).delta)
    first, second, again, once_more = map(set, found)
    assert first and len(first) == len(second) and not first & second
    assert second == again and first == once_more and torch.equal(ends[1], ends[2]) and torch.equal(ends[0], ends[3])


def test_mixups_share_is_a_clients_own():
    """Read off the targets, one after another and side by side; of one client alone it is the plain run's."""
    words = ["device=cpu", "dataset.subset=90", "train.batch_size=32", "augment=mixup", "model.hidden=[8]"]
    run, made = federation(*words, "federated=fedavg", "federated.clients=3", "federated.rounds=2")

    def share(batch) -> float:
        return min(batch.y.max(-1).values.min().item(), batch.y.flatten()[batch.y.flatten() > 0].min().item())

    for_each = [[share(batch) for batch in made.clients.batches(client, 1, 2)] for client in range(3)]
    assert len({value for values in for_each for value in values}) == 6
    assert for_each[1] == [share(batch) for batch in made.clients.batches(1, 1, 2)]
    beside = [
        share(batch.replica(k)) for batch, _ in Crew(made.clients, 3)._side_by_side([0, 1, 2], 1, 1) for k in range(3)
    ]
    assert beside == [values[0] for values in for_each]
    once = trainer(*words)
    assert share(next(once.loader.epoch(1))) == pytest.approx(for_each[0][0], abs=1e-6)


# ---- side by side


def both_ways(words: list[str], chunk: int = 4) -> None:
    ends = []
    for size in (1, chunk):
        run, algorithm = federation(*words, f"federated.chunk={size}")
        assert algorithm.clients.apart() is None, algorithm.clients.apart()
        start = run.weights.clone()
        rounds(run, algorithm)
        ends.append((run.weights.clone(), [b.clone() for b in algorithm.buffers], run.sums(), run.report))
        assert (run.weights.data - start).abs().max() > 1e-3
    (w, buffers, sums, report), (w2, buffers2, sums2, report2) = ends
    torch.testing.assert_close(w2, w, rtol=0, atol=1e-10)
    for a, b in zip(buffers, buffers2, strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-10)
    torch.testing.assert_close(sums2, sums, rtol=1e-5, atol=0)
    assert report2 == pytest.approx(report, rel=1e-6)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_side_by_side_equals_one_after_another(algorithm):
    words = [*SKEWED, f"federated={algorithm}", "federated.rounds=3", "federated.local_epochs=2"]
    run, made = federation(*words)
    if why := made.clients.apart():
        pytest.skip(why)
    assert len(set(made.clients.steps)) > 1 and made.clients.uneven
    both_ways(words)


@pytest.mark.parametrize(
    "words",
    [
        [*NORMED, "optim=sam", "loss=poly", "federated.clients=4"],
        [*NORMED, "optim=adamw", "federated.clients=4", "federated.local_steps=7", "schedule=cosine"],
        [*SKEWED, "hook=[clip]", "optim=sam", "federated.participation=0.7", "federated.client_dropout=0.2"],
        [*SKEWED, "dataset.val=0", "federated.partition=noise", "federated.sigma=0.5", "train.drop_last=true"],
        [*SKEWED, "augment=mixup", "sharpness=asam"],
    ],
    ids=["batch norm, sam", "batch norm, adamw, cosine", "clip, part of the clients", "feature noise", "mixup, asam"],
)
def test_combinations_side_by_side(words):
    both_ways(["device=cpu", "federated=fedavg", "federated.rounds=2", *words], chunk=3)


def test_padding_changes_no_statistics():
    """Batch normalisation over 5 true samples of 8 is that over the 5, running statistics included."""
    for norm, shape in ((torch.nn.BatchNorm1d(3), (8, 3)), (torch.nn.BatchNorm2d(3), (8, 3, 4, 2))):
        x, mask = torch.randn(shape), torch.arange(8) < 5
        other = copy.deepcopy(norm)
        expected = other(x[:5])
        with padding.left_out([norm], mask):
            got = norm(x)
        torch.testing.assert_close(got[:5], expected)
        for a, b in zip(norm.buffers(), other.buffers(), strict=True):
            torch.testing.assert_close(a, b)
        assert norm(x).shape == shape  # and is its old self again


def test_same_data_same_update():
    run, algorithm = federation(*SKEWED, "federated=fedavg")
    clients = algorithm.clients
    clients.rows[4] = clients.rows[1]
    for own in (clients.kept, clients.steps, clients.per_epoch):
        own[4] = own[1]
    start, buffers = algorithm.weights.data, algorithm.buffers
    one, two = (clients.alone(client, 0, start, buffers).delta for client in (1, 4))
    assert torch.equal(one, two) and one.abs().max() > 0
    both = Crew(clients, 2).answers([1, 4], 0, start, buffers).delta
    torch.testing.assert_close(both[0], both[1], rtol=0, atol=1e-14)


REASONS = {
    "dropout": ["model=wrn_16_8", "model.widen=1", "model.dropout=0.3"],
    "TopK": ["risk=top_k"],
    "fp16": ["train.precision=fp16"],
    "accumulate": ["train.accumulate=2"],
    "spectral_decoupling": ["hook=spectral_decoupling"],
    "ELR": ["loss=elr"],
    "AdaptiveK": ["risk=adaptive_k"],
    "saf": ["hook=saf"],
    "pgd": ["hook=pgd"],
}


@pytest.mark.parametrize("chunk", ["auto", 4])
@pytest.mark.parametrize("reason", REASONS)
def test_what_is_not_made_for_it_goes_one_after_another(reason, chunk):
    words = [word for word in SKEWED if reason != "dropout" or not word.startswith("model")]
    words += [*REASONS[reason], "federated=fedavg", "federated.rounds=1", f"federated.chunk={chunk}"]
    run, algorithm = federation(*words, double=False)
    said = []
    run.tell = said.append
    rounds(run, algorithm)
    assert algorithm.size == 1
    assert "one after another" in said[0] and reason in said[0]
