"""FedCE."""

from typing import Literal

import torch
from torch import Tensor

from runner.federated.clients import Updates
from runner.federated.fedavg import FedAvg

EPSILON = 1e-6  # least weight, before weights are divided by their sum


class FedCE(FedAvg):
    """Averages by the clients' estimated contribution (Jiang et al., CVPR 2023, arXiv:2303.16520).

    Of the clients i of a round, with updates g_i and last weights c_i (1 for who has none; floored and normalised):

        cos_i = cosine(g_i, sum_j c_j g_j - c_i g_i)                  0 where either vector is
        acc_i = accuracy of (x - c_i y_i) / (1 - c_i) on the client's own validation samples
        a_i = max(0, 1 - mean of its cos_i so far),    b_i = 1 - mean of its acc_i so far
        w_i = a_i / sum a + b_i / sum b  (plus)   or   a_i / sum a * b_i / sum b  (times)
        d = sum_i w_i g_i / sum w

    x are the server's weights at the start of the round and y_i the client's at the end of the round before, of which
    c_i went into x: without them, what the others know is measured. a, b, w and c are raised to 1e-6 where they are
    less, before they are divided by their sums.

    Settled by NVIDIA's code (NVFlare, nvflare/app_opt/pt/fedce.py and research/fed-ce, 2026), as the paper's equations
    could not be read: plus, the floor, means over the rounds that a client took part in, and accuracy in the place of
    the Dice score for classes. A client's first accuracy counts as 0. That code's first release (2023) keeps c uniform
    and its floor is 1e-3. Not settled: who was away in the round before is not in x, so c_i = 0 there and the model is
    x itself; where there was no other client, c_i = 1, the accuracy counts as 0. A client without validation samples
    has the mean of the other clients' accuracies of the round.

    A client's validation samples are those that `FedAvg` deals it. Running statistics are averaged as `weighting` says,
    which d does not ask, and are the server's in the models that are measured. The updates of a round, and one vector
    of weights for every client of the last one, are held.

    Parameters
    ----------
    mode : plus or times. Default plus, the code's.
    settings : those of `FedAvg`.

    Raises
    ------
    ValueError
        No validation samples, or targets that are not classes.
    """

    def __init__(self, mode: Literal["plus", "times"] = "plus", **settings):
        super().__init__(**settings)
        self.mode = mode
        self.found: dict[int, list[float]] = {}  # rounds, sum of cosines, sum of accuracies
        self.c: dict[int, float] = {}  # of the clients of the last round
        self.local: dict[int, Tensor] = {}  # y_i of the same

    def start(self, run) -> None:
        super().start(run)
        if self.held is None:
            raise ValueError("fedce measures clients on validation samples of classes; set dataset.val above 0")
        self.trainer = run
        owned = ((self.held == client).nonzero()[0] for client in range(self.count))
        self.own = [run.dataset.val.select(torch.from_numpy(rows)) for rows in owned]

    def begin_round(self) -> None:
        super().begin_round()
        self.deltas: dict[int, Tensor] = {}
        self.accuracy: dict[int, float | None] = {}  # of the round; None without validation samples

    def collect(self, updates: Updates) -> None:
        super().collect(updates)
        for client, delta in zip(updates.clients, updates.delta, strict=True):
            self.deltas[client] = delta
            self.accuracy[client] = self._without(client)

    def _without(self, client: int) -> float | None:
        """The accuracy, on a client's validation samples, of the server's weights less what came from it."""
        c = self.c.get(client, 0.0)
        if client not in self.found or c == 1:
            return 0.0
        if not len(self.own[client]):
            return None
        x = self.weights.data
        self._show(self.trainer)
        if c:
            self.trainer.weights.copy_((x - c * self.local[client]) / (1 - c))
        logits, targets = self.trainer.predict_as_is(self.own[client])  # of these weights, whatever hooks present
        return (logits.argmax(-1) == targets).double().mean().item()

    def direction(self) -> Tensor:
        clients = sorted(self.deltas)
        prior = normalised([self.c.get(client, 1.0) for client in clients])
        mean = sum(p * self.deltas[client] for p, client in zip(prior, clients, strict=True))
        known = [value for value in self.accuracy.values() if value is not None]
        a, b = [], []
        for p, client in zip(prior, clients, strict=True):
            g = self.deltas[client]
            others = mean - p * g
            size = g.norm() * others.norm()
            cosine = (g @ others / size).item() if size > 0 else 0.0
            accuracy = self.accuracy[client]
            if accuracy is None:
                accuracy = sum(known) / len(known) if known else 0.0
            rounds, *sums = self.found.get(client, [0, 0.0, 0.0])
            self.found[client] = [rounds + 1, sums[0] + cosine, sums[1] + accuracy]
            rounds, cosines, accuracies = self.found[client]
            a.append(max(0.0, 1 - cosines / rounds))
            b.append(1 - accuracies / rounds)
        both = zip(normalised(a), normalised(b), strict=True)
        w = normalised([x + y if self.mode == "plus" else x * y for x, y in both])
        self.c = dict(zip(clients, w, strict=True))
        self.local = {client: self.weights.data + delta for client, delta in self.deltas.items()}
        return sum(share * self.deltas[client] for client, share in self.c.items())

    def state_dict(self) -> dict:
        kept = ("found", "c", "local", "deltas", "accuracy")
        return {**super().state_dict(), "contributions": {name: getattr(self, name) for name in kept}}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        for name, values in state["contributions"].items():
            if name in ("local", "deltas"):
                values = {client: value.to(self.weights.device) for client, value in values.items()}
            setattr(self, name, values)


def normalised(values: list[float]) -> list[float]:
    """Floored at EPSILON and divided by their sum."""
    floored = [max(value, EPSILON) for value in values]
    return [value / sum(floored) for value in floored]
