"""FedLD."""

from collections.abc import Iterable

import torch
from torch import Tensor

from runner.core.batch import Batch, Output
from runner.core.precision import wide
from runner.core.reach import Begin
from runner.core.schema import Fraction, NonNegative
from runner.federated.clients import Updates
from runner.federated.fedavg import FedAvg
from runner.hook import Hook


class FedLD(FedAvg):
    """Loss decomposition (Zeng et al., MICCAI 2024, arXiv:2408.12300): margins held back on the clients, principal
    directions of their updates on the server.

        client:  loss + lam * log(1 + sum over the batch of |softmax(z_n)|^2)
        server, for every tensor, with the m clients' updates g_i as rows of G:
            (1/m) G G^T = sum_j s_j e_j e_j^T,  s falling;   the first k = max(1, int(m * k_proportion)) count
            d = G^T sum_{j <= k} sqrt(s_j / m) / (sum of all s) * mean_i(|g_i| sign(e_j[i])) * e_j
        and d = mean_i g_i where the tensor has not moved yet (in the first round, that is) or has one element.

    This is the authors' code (Zeng-Shuang/FedLD at 9440494: methods/fedld.py, svd_tools.py), which projects every g_i
    on each w_j = G^T e_j, gives the projection the length s_j / (sum of s) * |g_i|, and averages: as <g_i, w_j> = m s_j
    e_j[i] and |w_j|^2 = m s_j, that is the d above. The paper's equations could not be read. Unsettled: whether it
    means the client's term per sample; in the code it grows with the batch. Here the loss is the run's own, and a part
    of a batch where `train.accumulate` cuts it. Other departures: the code projects running statistics too, where a
    variance may turn negative, and here they are averaged; it needs all clients in every round, and here m is those
    that answered; it leaves one client alone at k = 0. It also keeps an average of d, which only serves to see whether
    a tensor has moved.

    The updates of a round are held until it ends. `weighting` is that of the running statistics and of the record.

    Parameters
    ----------
    lam : weight of the client's term. Default 0.03, the code's; its README's command has 0.1.
    k_proportion : share of the m directions that count. Default 0.8, the code's.
    settings : those of `FedAvg`.
    """

    def __init__(self, lam: NonNegative = 0.03, k_proportion: Fraction = 0.8, **settings):
        super().__init__(**settings)
        self.client = Margins(lam)
        self.k_proportion = k_proportion

    def start(self, run) -> None:
        self.spans = [slice(place.start, place.start + place.size.numel()) for place in run.weights.places]
        self.moved = torch.zeros(len(self.spans), dtype=torch.bool)
        super().start(run)

    def begins(self, steps: int, steps_per_epoch: int) -> Iterable[Begin]:
        yield Begin("the first projection", 1, "updates are averaged")

    def begin_round(self) -> None:
        super().begin_round()
        self.deltas: dict[int, Tensor] = {}

    def collect(self, updates: Updates) -> None:
        super().collect(updates)
        self.deltas |= zip(updates.clients, updates.delta, strict=True)

    def direction(self) -> Tensor:
        g = torch.stack([self.deltas[client] for client in sorted(self.deltas)])
        d = g.mean(0)
        for t, span in enumerate(self.spans):
            if self.moved[t] and span.stop - span.start > 1:
                d[span] = project(g[:, span], self.k_proportion)
            self.moved[t] |= d[span].any().cpu()
        return d

    def state_dict(self) -> dict:
        return {**super().state_dict(), "deltas": self.deltas, "moved": self.moved}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.deltas = {client: delta.to(self.weights.device) for client, delta in state["deltas"].items()}
        self.moved = state["moved"].cpu()


def project(g: Tensor, k_proportion: float) -> Tensor:
    """(N,) the step d of one tensor from the clients' updates g (m, N)."""
    g, m = g.double(), len(g)
    s, e = torch.linalg.eigh(g @ g.T / m)
    s = s.clamp(min=0)
    total = s.sum().clamp(min=torch.finfo(s.dtype).tiny)  # 0 only where g is
    k = max(1, int(m * k_proportion))
    s, e = s[-k:], e[:, -k:]  # eigh: rising
    return g.T @ (e @ ((s / m).sqrt() / total * (torch.linalg.vector_norm(g, dim=1) @ e.sign() / m)))


class Margins(Hook):
    """lam * log(1 + sum over the batch of |softmax(z_n)|^2)."""

    padding = True

    def __init__(self, lam: float):
        self.lam = lam

    def loss(self, run, out: Output, batch: Batch) -> Tensor:
        squares = wide(out.logits).softmax(-1).square().sum(-1)
        if batch.mask is not None:
            squares = squares * batch.mask
        return self.lam * squares.sum().log1p()
