"""FedAdam, FedLD, FedCE, WAFL and FedLEx against the references: the server on given updates, the client's step, and
whole runs of a few rounds."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from runner.core import checkpoint
from runner.core.batch import Batch, Output
from runner.core.dropout import Masks
from runner.core.mistake import ConfigError
from runner.engine.trainer import Trainer
from runner.federated.clients import Updates
from runner.federated.fedld import Margins
from runner.record.folder import Stopped
from tests.federated.test_federated import NORMED, SKEWED, federation, rounds
from tests.federated.test_reference import fedadam, fedce, fedld, fedlex, wafl

CHOSEN = ("fedadam", "fedld", "fedce", "wafl", "fedlex")
PLAIN = ["optim.momentum=0", "optim.weight_decay=0", "optim.lr=0.3"]


def near(got, expected) -> None:
    np.testing.assert_allclose(np.asarray(got), np.asarray(expected), rtol=0, atol=1e-10)


def tensors(run, vector) -> list[np.ndarray]:
    return [view.numpy().copy() for _, view in run.weights.views(vector)]


def vector(run, parts) -> torch.Tensor:
    return run.weights.flatten([torch.from_numpy(np.asarray(part)) for part in parts])


def serve(run, algorithm, deltas: dict[int, torch.Tensor], samples=None, parts: int = 2) -> torch.Tensor:
    """One round of given updates, taken in in parts. Returns the server's step."""
    before = algorithm.weights.data.clone()
    algorithm.begin_round()
    clients = list(deltas)
    for some in (clients[: len(clients) // parts], clients[len(clients) // parts :]):
        if some:
            ones = torch.ones(len(some), dtype=torch.float64)
            sizes = ones if samples is None else torch.tensor([float(samples[client]) for client in some])
            buffers = [buffer.expand(len(some), *buffer.shape) for buffer in algorithm.buffers]
            delta = torch.stack([deltas[client] for client in some])
            algorithm.collect(Updates(some, sizes, ones, ones, delta, buffers))
    algorithm._serve(run)
    return algorithm.weights.data - before


def draw(run, seed: int) -> torch.Tensor:
    """A random update: zero where the vector of weights holds none."""
    rng = np.random.default_rng(seed)
    return vector(run, [rng.standard_normal(tuple(place.size)) for place in run.weights.places])


def recorded(algorithm) -> list[dict[int, torch.Tensor]]:
    """Every round's {client: update}, filled in while the algorithm runs."""
    found, begin, collect = [], algorithm.begin_round, algorithm.collect

    def begin_round():
        found.append({})
        begin()

    def take(updates):
        found[-1] |= {client: delta.clone() for client, delta in zip(updates.clients, updates.delta, strict=True)}
        collect(updates)

    algorithm.begin_round, algorithm.collect = begin_round, take
    return found


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


# ---- FedLD


LD = [*SKEWED, "federated=fedld"]


@pytest.mark.parametrize("hidden", [12, 1])  # 1: a bias of one element, which is averaged
@pytest.mark.parametrize("k_proportion", [0.8, 0.3])
def test_fedlds_server(hidden, k_proportion):
    run, algorithm = federation(*LD, f"model.hidden=[{hidden}]", f"federated.k_proportion={k_proportion}")
    given, steps = [], []
    for round_, clients in enumerate([(4, 1, 3), (0, 1, 2, 3, 4, 5), (5,), (0, 1, 2, 5)]):
        deltas = {client: draw(run, 10 * round_ + client) for client in clients}
        if round_ == 0:  # a tensor that has not moved takes the mean once more
            span = algorithm.spans[1]
            for delta in deltas.values():
                delta[span] = 0
        if round_ == 3:  # fewer directions than clients
            deltas[5] = deltas[1].clone()
        steps.append(serve(run, algorithm, deltas, samples=range(1, 7)))
        given.append([tensors(run, delta) for delta in deltas.values()])
    expected = fedld.run(given, k_proportion)
    for step, wanted in zip(steps, expected, strict=True):
        for got, tensor in zip(tensors(run, step), wanted, strict=True):
            near(got, tensor)
    assert np.abs(expected[1][0] - np.mean([g[0] for g in given[1]], 0)).max() > 0.1  # it is no average


def test_fedlds_server_by_hand():
    """Updates (3, 0) and (0, 4), k_proportion 0.5: (1/m) G G^T = diag(4.5, 8), k = 1: s = 8, e = (0, 1).
    Only the second client lies along it: step = 8 / 12.5 * (4 / 2) * (0, 1) = (0, 1.28)."""
    from runner.federated.fedld import project

    g = torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    near(project(g, 0.5), [0, 1.28])
    near(project(g, 1.0), [4.5 / 12.5 * 1.5, 1.28])
    near(project(torch.zeros_like(g), 1.0), [0, 0])


def test_fedlds_loss():
    rng = np.random.default_rng(0)
    logits, y, real = 3 * rng.standard_normal((6, 4)), rng.integers(4, size=6), [1, 1, 0, 1, 1, 0]
    batch = Batch(torch.zeros(6, 2), torch.from_numpy(y), torch.arange(6))
    out = Output(torch.from_numpy(logits), torch.zeros(6, 1))
    hook = Margins(0.3)
    near(hook.loss(None, out, batch), fedld.loss(logits, y, 0.3) - fedld.loss(logits, y, 0.0))
    batch.mask = torch.tensor(real, dtype=torch.bool)
    near(hook.loss(None, out, batch), fedld.loss(logits, y, 0.3, real) - fedld.loss(logits, y, 0.0, real))
    # two samples of equal logits: 1/4 + 1/4 for each of two classes, log(1 + 1)
    two = Batch(torch.zeros(2, 2), torch.zeros(2, dtype=torch.int64), torch.arange(2))
    near(Margins(1.0).loss(None, Output(torch.zeros(2, 2), torch.zeros(2, 1)), two).double(), np.float32(np.log(2)))


@pytest.mark.parametrize("participation", [1, 0.5])
def test_fedld_run(participation):
    words = [*LD, *PLAIN, "train.batch_size=256", "federated.local_epochs=2", "federated.lam=0.5"]
    run, algorithm = federation(*words, "federated.rounds=3", f"federated.participation={participation}")
    x, found = run.weights.clone(), recorded(algorithm)
    rounds(run, algorithm)
    expected = fedld.run([[tensors(run, delta) for delta in updates.values()] for updates in found])
    for step in expected:
        x += vector(run, step)
    near(run.weights.data, x)


def test_fedlds_client():
    words = [*LD, *PLAIN, "train.batch_size=256", "federated.local_epochs=2", "federated.lam=0.5"]
    run, algorithm = federation(*words)
    start, client = run.weights.clone(), 1
    batch = run.loader.batch(algorithm.clients.rows[client])
    w = [torch.from_numpy(part).requires_grad_() for part in tensors(run, start)]
    for _ in range(2):
        logits = F.linear(F.linear(batch.x.flatten(1), w[0], w[1]).relu(), w[2], w[3])
        loss = F.cross_entropy(logits, batch.y) + 0.5 * torch.log(1 + torch.linalg.matrix_norm(logits.softmax(1)) ** 2)
        w = [(a - 0.3 * g).detach().requires_grad_() for a, g in zip(w, torch.autograd.grad(loss, w), strict=True)]
    updates = algorithm.clients.alone(client, 0, start, algorithm.buffers)
    near(updates.delta[0], vector(run, [a.detach() for a in w]) - start)


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


# ---- WAFL


def test_wafl_run():
    words = [*SKEWED, *PLAIN, "federated=wafl", "model.hidden=[]", "federated.rounds=2"]
    words += ["federated.participation=0.5", "federated.gamma=0.3", "federated.climb_steps=4"]
    run, algorithm = federation(*words)
    w, b = tensors(run, run.weights.data)
    clients, moved = algorithm.clients, 0.0
    for round_ in range(2):
        ends, sizes = [], []
        for client in algorithm.plan[round_][0]:
            count = clients.steps[client]
            batches = [
                list(zip(batch.x.flatten(1).numpy(), batch.y.numpy(), strict=True))
                for batch in clients.batches(client, round_ * count, count)
            ]
            ends.append(wafl.local(w, b, batches, 0.3, gamma=0.3, alpha=1.0, steps=4))
            plain = wafl.local(w, b, batches, 0.3, alpha=0.0)
            moved = max(moved, np.abs(ends[-1][0] - plain[0]).max())
            sizes.append(len(clients.rows[client]))
        w, b = (wafl.server([end[i] for end in ends], sizes) for i in (0, 1))
    rounds(run, algorithm)
    for got, expected in zip(tensors(run, run.weights.data), (w, b), strict=True):
        near(got, expected)
    assert moved > 0.01


def test_wafls_climb_leaves_statistics_and_dropout_alone():
    """Climbs of length 0 change nothing, bit for bit, with dropout and batch normalisation in the model."""
    words = [
        "device=cpu",
        "model=wrn_16_8",
        "model.widen=1",
        "model.depth=10",
        "model.dropout=0.3",
        "dataset.subset=60",
    ]
    words += ["train.batch_size=16", "federated.clients=2", "federated.rounds=2", "federated.local_steps=2"]
    ends = []
    for name, more in (("fedavg", []), ("wafl", ["federated.climb_lr=0", "federated.climb_steps=2"])):
        run, algorithm = federation(*words, f"federated={name}", *more, double=False)
        rounds(run, algorithm)
        ends.append([run.weights.clone(), *algorithm.buffers, run.sums()])
    for one, other in zip(*ends, strict=True):
        assert torch.equal(one, other)


def test_wafls_climb_sees_the_masks_of_the_step(monkeypatch):
    keys, draw_ = [], Masks.draw

    def seen(self, k, layer, like):
        keys.append((self.step, self.forwards, layer))
        return draw_(self, k, layer, like)

    monkeypatch.setattr(Masks, "draw", seen)
    words = [
        "device=cpu",
        "model=wrn_16_8",
        "model.widen=1",
        "model.depth=10",
        "model.dropout=0.3",
        "dataset.subset=60",
    ]
    run, algorithm = federation(
        *words, "federated=wafl", "federated.clients=2", "federated.climb_steps=2", double=False
    )
    keys.clear()
    algorithm.clients.alone(0, 0, algorithm.weights.data, algorithm.buffers, limit=1)
    layers = len({layer for *_, layer in keys})
    assert len(keys) == 3 * layers and {key[:2] for key in keys} == {(0, 0)}


def test_wafl_climbs_micro_batches_by_themselves():
    ends = []
    for accumulate in (1, 3):
        run, algorithm = federation(*SKEWED, "federated=wafl", f"train.accumulate={accumulate}")
        rounds(run, algorithm, 2)
        ends.append(run.weights.clone())
    near(*ends)


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
