"""FedAdam, FedLD, FedCE, WAFL and FedLEx against the references: the server on given updates, the client's step, and
whole runs of a few rounds."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from runner.core import checkpoint
from runner.core.mistake import ConfigError
from runner.engine.trainer import Trainer
from runner.record.folder import Stopped
from tests.federated.against import PLAIN, draw, near, recorded, serve, tensors
from tests.federated.made import NORMED, SKEWED, federation, rounds
from tests.federated.test_reference import fedadam
from tests.federated.test_reference_methods import fedce, fedlex

CHOSEN = ("fedadam", "fedld", "fedce", "wafl", "fedlex")


def logits_of(parts, x) -> np.ndarray:
    """The perceptron with one hidden layer."""
    w1, b1, w2, b2 = parts
    return np.maximum(x @ w1.T + b1, 0) @ w2.T + b2


# ---- FedAdam


def test_fedadams_server():
    run, algorithm = federation(*SKEWED, "federated=fedadam", "federated.server.lr=0.1")
    x, sizes = algorithm.weights.data.clone(), [1, 2, 3, 4, 5, 6]
    means, path = [], []
    for round_, clients in enumerate([(0, 1, 2, 3, 4, 5), (4, 2), (5, 0, 1)]):
        deltas = {client: draw(run, 10 * round_ + client) for client in clients}
        serve(run, algorithm, deltas, sizes)
        total = sum(sizes[client] for client in clients)
        means.append(sum(sizes[client] / total * deltas[client].numpy() for client in clients))
        path.append(algorithm.weights.data.numpy().copy())
    near(path, fedadam.run(x.numpy(), means, lr=0.1))


def test_fedadam_run():
    run, algorithm = federation(*SKEWED, "federated=fedadam", "federated.rounds=3", "federated.participation=0.5")
    x, found = run.weights.data.numpy().copy(), recorded(algorithm)
    rounds(run, algorithm)
    sizes = algorithm.partition.sizes
    means = [
        sum(sizes[k] * delta.numpy() for k, delta in updates.items()) / sum(sizes[k] for k in updates)
        for updates in found
    ]
    assert [len(updates) for updates in found] == [3, 3, 3]
    near(run.weights.data, fedadam.run(x, means, lr=0.01)[-1])


# ---- FedCE

CE = [*SKEWED, "federated=fedce", "dataset.val=0.4", "dataset.subset=400", "optim.lr=0.5"]


@pytest.mark.parametrize("mode", ["plus", "times"])
@pytest.mark.parametrize("participation", [1, 0.7])
def test_fedce_run(mode, participation):
    """The scores are worked out here, from leave-one-out models of the reference's own path."""
    words = [*CE, "federated.rounds=4", f"federated.mode={mode}", f"federated.participation={participation}"]
    run, algorithm = federation(*words)
    found, starts = recorded(algorithm), []
    for _ in range(4):
        starts.append(run.weights.data.numpy().copy())
        rounds(run, algorithm, 1)
    (val,) = run.loader.evaluate(run.dataset.val, 10_000)
    x, y = val.x.flatten(1).numpy(), val.y.numpy()
    assert all((algorithm.held == client).any() for client in range(6))
    given, weights, seen, scores = [], {}, set(), []
    at = starts[0]
    for round_, updates in enumerate(found):
        near(starts[round_], at)
        now = {}
        for client, delta in updates.items():
            score = None
            if client in seen:
                c = weights.get(client, 0.0)
                y_i = starts[round_ - 1] + found[round_ - 1][client].numpy() if c else 0.0
                without = tensors(run, torch.from_numpy(fedce.leave_one_out(at, y_i, c)))
                own = algorithm.held == client
                score = float((logits_of(without, x[own]).argmax(1) == y[own]).mean())
                scores.append(score)
            now[client] = (delta.numpy(), score)
        seen |= set(now)
        given.append(now)
        weights = fedce.run(given, mode)[-1]
        at = at + sum(weights[client] * delta for client, (delta, _) in now.items())
    near(run.weights.data, at)
    assert len({round(score, 3) for score in scores}) > 3
    assert max(weights.values()) - min(weights.values()) > 0.01


def test_fedces_client_without_validation_samples_has_the_mean_of_the_others():
    run, algorithm = federation(*CE)
    algorithm.own[2] = algorithm.own[2].select(torch.arange(0))
    given, values = [], {}
    for round_ in range(3):
        deltas = {client: draw(run, 10 * round_ + client) for client in range(4)}
        measured = {client: algorithm._without(client) for client in deltas}
        assert (measured[2] is None) == (round_ > 0)
        known = [value for value in measured.values() if value is not None]
        values = {client: np.mean(known) if value is None else value for client, value in measured.items()}
        given.append({client: (delta.numpy(), values[client]) for client, delta in deltas.items()})
        step = serve(run, algorithm, deltas)
        weights = fedce.run(given)[-1]
        near(step, sum(weights[client] * delta.numpy() for client, delta in deltas.items()))
    assert 0 < values[2] < 1


def test_fedce_with_one_client_is_fedavg():
    ends = []
    for name in ("fedavg", "fedce"):
        words = [*CE, f"federated={name}", "federated.clients=1", "federated.partition=iid", "federated.rounds=3"]
        run, algorithm = federation(*words)
        rounds(run, algorithm)
        ends.append(run.weights.clone())
    near(ends[0], ends[1])


def test_fedce_needs_validation_samples():
    with pytest.raises(ConfigError, match=r"dataset\.val"):
        federation(*SKEWED, "federated=fedce", "dataset.val=0")


# ---- FedLEx


@pytest.mark.parametrize("explorers", [1, 0.5])
@pytest.mark.parametrize("hidden", [12, 1])  # 1: a bias of one element, whose G is 1
def test_fedlex_run(explorers, hidden):
    words = [
        *SKEWED,
        *PLAIN,
        "federated=fedlex",
        "train.batch_size=256",
        "federated.rounds=3",
        f"model.hidden=[{hidden}]",
    ]
    words += ["federated.explore_epochs=3", f"federated.explorers={explorers}", "federated.participation=0.5"]
    run, algorithm = federation(*words)
    assert len(algorithm.explorers) == 6 * explorers
    w = tensors(run, run.weights.data)
    data = [(batch.x.flatten(1), batch.y) for batch in (run.loader.batch(rows) for rows in algorithm.clients.rows)]

    def gradient(client):
        def at(parts):
            parts = [torch.from_numpy(part).requires_grad_() for part in parts]
            x, y = data[client]
            logits = F.linear(F.linear(x, parts[0], parts[1]).relu(), parts[2], parts[3])
            return [g.numpy() for g in torch.autograd.grad(F.cross_entropy(logits, y), parts)]

        return at

    ones = [np.ones_like(part) for part in w]
    guide = fedlex.guidance(w, [fedlex.local(w, gradient(i), ones, 3, 0.3) for i in algorithm.explorers])
    for chosen, _ in algorithm.plan:
        ends = [fedlex.local(w, gradient(i), guide, 1, 0.3) for i in chosen]
        p = [len(data[i][1]) / sum(len(data[j][1]) for j in chosen) for i in chosen]
        w = [sum(share * end[t] for share, end in zip(p, ends, strict=True)) for t in range(len(w))]
    rounds(run, algorithm)
    for got, expected in zip(tensors(run, run.weights.data), w, strict=True):
        near(got, expected)
    for got, expected in zip(tensors(run, algorithm.guide), guide, strict=True):
        near(got, expected)
    assert run.steps == 3 and run.samples == sum(len(data[i][1]) for chosen, _ in algorithm.plan for i in chosen)
    if hidden == 1:
        assert guide[1] == 1


def test_fedlex_guides_before_clipping():
    words = [*SKEWED, *PLAIN, "federated=fedlex", "hook=clip", "hook.clip.norm=0.1", "train.batch_size=256"]
    run, algorithm = federation(*words)
    start, client = run.weights.clone(), 1
    batch = run.loader.batch(algorithm.clients.rows[client])
    run.gradient(batch, note=False)
    guide = draw(run, 0).abs()
    guided = guide * run.weights.grad
    algorithm.guide = guide
    algorithm.brief(run.hooks.named["client"], [client])
    delta = algorithm.clients.alone(client, 0, start, algorithm.buffers).delta[0]
    assert guided.norm() > 0.1
    near(delta, -0.3 * 0.1 * guided / (guided.norm() + 1e-6))


def test_fedlex_explores_side_by_side():
    ends = []
    for chunk in (1, 4):
        run, algorithm = federation(*SKEWED, "federated=fedlex", f"federated.chunk={chunk}")
        algorithm._explore(run)
        assert not run.sums().any()  # the record is of the rounds
        assert (algorithm.crew is None) == (chunk == 1)
        assert sorted(algorithm.explored) == algorithm.explorers == [0, 1, 2, 3, 4, 5]
        ends.append(algorithm.guide)
    near(*ends)
    for edge, value in ((torch.amin, 0.0), (torch.amax, 1.0)):
        assert [edge(view).item() for _, view in run.weights.views(ends[0])] == [value] * 4


# ---- all


@pytest.mark.parametrize("after", [3, 9, 14, 23])
@pytest.mark.parametrize("name", CHOSEN)
def test_resumed_in_the_middle_of_a_round_bit_for_bit(name, after, tmp_path, monkeypatch):
    words = [*SKEWED, f"federated={name}", "federated.rounds=3", "federated.chunk=1", "federated.participation=0.7"]
    whole, algorithm = federation(*words)
    rounds(whole, algorithm)

    run, algorithm = federation(*words)
    run.record.folder = tmp_path
    step, left = Trainer.step, after

    def counted(self, batch):
        nonlocal left
        left -= 1
        if left == 0:
            self.stop = "test"
        return step(self, batch)

    monkeypatch.setattr(Trainer, "step", counted)
    with pytest.raises(Stopped):
        rounds(run, algorithm)
    other, again = federation(*words)
    other.load_state_dict(checkpoint.load(tmp_path / "last.pt"))
    assert other.count < 3
    rounds(other, again, 3 - other.count)
    assert torch.equal(other.weights.data, whole.weights.data)
    assert torch.equal(other.sums(), whole.sums())


@pytest.mark.parametrize("name", CHOSEN)
def test_one_client_is_refused_and_the_others_go_on(name):
    words = [*SKEWED, f"federated={name}", "federated.rounds=2", "federated.chunk=1"]
    run, algorithm = federation(*words)
    run.loader._train.base = run.loader._train.base.clone().double()
    bad = int(algorithm.clients.rows[2][0])
    run.loader._train.base[bad if run.loader._train.rows is None else run.loader._train.rows[bad]] = float("nan")
    rounds(run, algorithm)
    assert run.report["refused"] == 1 and run.report["clients"] == 5
    assert torch.isfinite(run.weights.data).all()


@pytest.mark.parametrize("name", CHOSEN)
def test_with_batch_normalisation_it_trains(name):
    words = ["device=cpu", *NORMED, f"federated={name}", "federated.clients=3", "federated.rounds=2", "dataset.val=0.2"]
    run, algorithm = federation(*words, double=False)
    start = run.weights.clone()
    rounds(run, algorithm)
    assert torch.isfinite(run.weights.data).all() and not torch.equal(run.weights.data, start)
    assert all(torch.isfinite(buffer).all() for buffer in algorithm.buffers)
