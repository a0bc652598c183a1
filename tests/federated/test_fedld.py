"""FedLD: loss, client and server against the authors' definition."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from runner.core.batch import Batch, Output
from runner.federated.fedld import Margins
from tests.federated.against import PLAIN, draw, near, recorded, serve, tensors, vector
from tests.federated.made import SKEWED, federation, rounds
from tests.federated.test_reference_methods import fedld

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
