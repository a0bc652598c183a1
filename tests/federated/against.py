"""What the tests of one federated method each compare with: servers of one call, and what clients sent."""

import numpy as np
import torch

from runner.federated.clients import Updates

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
