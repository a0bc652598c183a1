"""WAFL: its climb and its weights against a loop."""

import numpy as np
import torch

from runner.core.dropout import Masks
from tests.federated.against import PLAIN, near, tensors
from tests.federated.made import SKEWED, federation, rounds
from tests.federated.test_reference_methods import wafl


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
