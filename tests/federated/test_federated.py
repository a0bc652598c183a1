"""Federated training: against plain loops written here, against plain training, and clients side by side = alone."""

import numpy as np
import pytest
import torch

from runner.federated.held import deal
from runner.federated.partition import Partition
from tests.federated.made import DATA, NORMED, SKEWED, federation, plain, rounds
from tests.tiny import trainer

# ---- against loops written from the papers' algorithms, in plain torch: full batches, so that no order matters

PLAIN = {
    "fedavg": [],
    "fedavg uniform": ["federated.weighting=uniform"],
    "fedavg server_lr": ["federated.server.lr=0.5"],
    "fedprox": ["federated.mu=0.1"],
    "scaffold": [],
    "fednova": [],
}


@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize("name", PLAIN)
def test_equals_a_plain_loop(name, chunk):
    kind, _, extra = name.partition(" ")
    words = [*SKEWED, f"federated={kind}", *PLAIN[name], "train.batch_size=256", "optim.momentum=0"]
    words += ["optim.weight_decay=0", "optim.lr=0.3", "federated.rounds=4", f"federated.chunk={chunk}"]
    words += ["federated.local_epochs=3"]
    run, algorithm = federation(*words)
    split, data = run.loader._train, []
    for rows in algorithm.clients.rows:
        batch = run.loader.batch(rows)
        assert torch.equal(batch.y, split.y[rows])
        data.append((batch.x.flatten(1), batch.y))
    steps = [3] * len(data)
    if kind == "fednova":  # unequal work, without which it is FedAvg
        steps = algorithm.clients.steps = [1, 2, 3, 4, 5, 6]
    start = [view.clone() for _, view in run.weights.views(run.weights.data)]
    rounds(run, algorithm)
    uniform = extra == "uniform" or kind == "scaffold"
    expected = plain(kind, start, data, 4, 0.3, steps, uniform=uniform, server_lr=0.5 if extra == "server_lr" else 1.0)
    for (_, got), wanted in zip(run.weights.views(run.weights.data), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)
    assert max((a - b).abs().max().item() for a, b in zip(start, expected, strict=True)) > 0.01


@pytest.mark.parametrize(
    "words", [["dataset=digits"], ["dataset=multi_digits", "loss=asl_multilabel"], ["dataset=wine"]]
)
def test_feature_noise_is_a_share_of_the_inputs_range(words):
    """Grey levels are 0..16 in both sets of digits; a table has no range, and its normalised inputs get the noise."""
    noisy = ["federated=fedavg", "federated.clients=2", "federated.partition=noise", "train.batch_size=16"]
    run, algorithm = federation(*words, "device=cpu", *noisy, "federated.sigma=0.3")
    unit = 1 / run.loader.scale if words == ["dataset=wine"] else torch.tensor(16.0)
    for client, level in ((0, 0.0), (1, 0.3)):
        found = []
        for batch in algorithm.clients.batches(client, 0, 2):
            clean = run.loader.batch(batch.index)
            found.append(((batch.x - clean.x) / run.loader.scale / unit).flatten())
        assert torch.cat(found).std().item() == pytest.approx(level, rel=0.1, abs=1e-9)


# ---- against plain training


@pytest.mark.parametrize(
    "words",
    [
        [*DATA, "optim.momentum=0", "schedule=cosine", "schedule.warmup=2"],
        [*DATA, "optim=sam", "optim.momentum=0", "loss=poly", "hook=clip", "train.batch_size=50"],
        ["device=cpu", *NORMED, "optim.momentum=0"],
    ],
    ids=["cosine", "sam, poly, clip", "batch norm, augmented"],
)
def test_one_client_is_plain_training(words):
    once = trainer(*words, "train.epochs=3", double=True)
    for epoch in range(3):
        for batch in once.loader.epoch(epoch):
            once.step(batch)
    run, algorithm = federation(*words, "federated=fedavg", "federated.clients=1", "federated.rounds=3")
    rounds(run, algorithm)
    torch.testing.assert_close(run.weights.data, once.weights.data, rtol=0, atol=1e-10)
    for a, b in zip(run.model.buffers(), once.model.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_one_round_of_one_client_with_optimizer_state():
    words = [*DATA, "optim=adamw", "model.hidden=[12]"]
    once = trainer(*words, "train.epochs=4", double=True)
    for epoch in range(4):
        for batch in once.loader.epoch(epoch):
            once.step(batch)
    words += ["federated=fedavg", "federated.clients=1", "federated.rounds=1", "federated.local_epochs=4"]
    run, algorithm = federation(*words)
    rounds(run, algorithm)
    torch.testing.assert_close(run.weights.data, once.weights.data, rtol=0, atol=1e-10)


# ---- identities


def test_scaffolds_variates_average_to_the_servers():
    words = [*SKEWED, "federated=scaffold", "federated.participation=0.5", "federated.rounds=5"]
    run, algorithm = federation(*words)
    rounds(run, algorithm)
    assert 3 <= len(algorithm.own) <= 6 and algorithm.c.abs().max() > 0
    torch.testing.assert_close(sum(algorithm.own.values()) / 6, algorithm.c, rtol=0, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fednova_with_equal_steps_is_fedavg(momentum):
    ends = []
    for name in ("fedavg", "fednova"):
        words = [*SKEWED, f"federated={name}", "federated.local_steps=5", f"optim.momentum={momentum}"]
        run, algorithm = federation(*words, "federated.rounds=2")
        rounds(run, algorithm)
        ends.append(run.weights.clone())
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=1e-12)


def test_fednovas_weights_of_gradients_by_hand():
    """m = 0.5, S = 3: the gradients enter with 1 + 0.5 + 0.25, 1 + 0.5 and 1: 4.25 in all; S = 1: 1."""
    run, algorithm = federation(*SKEWED, "federated=fednova", "optim.momentum=0.5")
    from runner.federated.clients import Updates

    delta = torch.zeros(2, len(algorithm.weights), dtype=torch.float64)
    delta[0, 0], delta[1, 0] = 4.25, 1.0
    numbers = torch.tensor([[3.0, 1.0], [3.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    algorithm.begin_round()
    algorithm.collect(Updates([0, 1], *numbers, delta, [b.unsqueeze(0).repeat(2, 1) for b in algorithm.buffers]))
    # p = 3/4, 1/4: sum p a = 3.4375, and sum p d / a = 3/4 + 1/4 = 1
    assert algorithm.direction()[0].item() == pytest.approx(3.4375)


def test_divergence_by_hand():
    """Updates (3, 0) and (0, 3) of clients of 2 and 1 samples: d = (2, 1), |d|^2 = 5;
    2/3 * ((3-2)^2 + 1) + 1/3 * (4 + 4) = 4, and sqrt(4 / 5)."""
    run, algorithm = federation(*SKEWED, "federated=fedavg")
    from runner.federated.clients import Updates

    delta = torch.zeros(2, len(algorithm.weights), dtype=torch.float64)
    delta[0, 0] = delta[1, 1] = 3.0
    numbers = torch.tensor([[2.0, 1.0], [1.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    algorithm.begin_round()
    algorithm.collect(Updates([0, 1], *numbers, delta, []))
    algorithm.buffers = []
    found = algorithm._serve(run)
    assert found == {"update_norm": pytest.approx(5**0.5), "divergence": pytest.approx((4 / 5) ** 0.5)}


def test_validation_samples_are_dealt_like_the_training_samples():
    class Part:
        def __init__(self, y):
            self.y, self.domain = torch.tensor(y), None

    owner = np.array([0, 0, 0, 1, 1, 1, 1, -1])  # class 0: three and one; class 1: none and three, one is nobody's
    train, val = Part([0, 0, 0, 0, 1, 1, 1, 1]), Part([0, 1, 0, 0, 1, 0, 2])
    made = object.__new__(Partition)
    made.owner, made.clients = owner, 2
    dealt = deal(made, train, val)
    assert dealt.tolist() == [0, 1, 0, 0, 1, 1, -1]
    # with domains: class 0 of domain 1 belongs to client 1 alone, of domain 0 to client 0 alone
    train.domain, val.domain = torch.tensor([0, 0, 0, 1, 0, 0, 0, 0]), torch.tensor([1, 0, 0, 0, 0, 1, 0])
    assert deal(made, train, val).tolist() == [1, 1, 0, 0, 1, 1, -1]
