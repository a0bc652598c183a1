"""SCAFFOLD."""

from collections.abc import Iterable

import torch
from torch import Tensor

from runner.core.reach import Begin
from runner.federated.clients import Updates
from runner.federated.fedavg import FedAvg
from runner.hook import Hook


class Scaffold(FedAvg):
    """Stochastic controlled averaging (Karimireddy et al., ICML 2020, arXiv:1910.06378, algorithm 1, option II).

        client k:   y = y - lr * (g_k(y) - c_k + c)   for S steps from y = x;   d_k = y - x
                    c_k+ = c_k - c + (x - y) / (sum of the steps' learning rates)     (S * lr where it is constant)
        server:     x = x + server_lr * sum_k p_k d_k,     c = c + 1/N * sum_k (c_k+ - c_k)

    N is the number of all clients; all variates start at zero, so that c is the mean of all c_k at any time. The
    paper's clients take plain SGD steps. With any other optimizer c_k is the displacement divided by the learning
    rates, which with momentum m is about 1 / (1 - m) times an average gradient; so the correction -lr * (c - c_k) is
    applied after the optimizer's step, in the same unit, and not to the gradient, where momentum would multiply it once
    more. The public code of NIID-Bench (Li et al. 2022, arXiv:2102.02079) does so too; for plain SGD the two are one.
    The paper averages with p_k = 1 / K, this option's default; NIID-Bench by samples. S counts the steps that were
    taken: neither those that fp16 skipped nor, for this sum, those of a learning rate of 0; a client without any keeps
    its c_k.

    Parameters
    ----------
    settings : those of `FedAvg`.
    """

    traffic = (2.0, 2.0)

    def __init__(self, **settings):
        super().__init__(**settings)
        self.client = Correction()
        self.c = torch.zeros_like(self.weights.data)
        self.own: dict[int, Tensor] = {}  # c_k of the clients that have taken part
        self.news: dict[int, Tensor] = {}  # c_k+ of this round

    def start(self, run) -> None:
        if len(set(run.base_lrs)) > 1:
            raise ValueError(
                "scaffold's variates are updates by one learning rate: set groups=one, and an optim with one"
            )
        super().start(run)

    def begins(self, steps: int, steps_per_epoch: int) -> Iterable[Begin]:
        yield Begin("a variate that is not zero", 1, "this is federated=fedavg")

    def brief(self, hook: Hook, clients: list[int]) -> None:
        hook.shift = torch.stack([self.c - self.own[client] if client in self.own else self.c for client in clients])

    def begin_round(self) -> None:
        super().begin_round()
        self.news = {}

    def collect(self, updates: Updates) -> None:
        super().collect(updates)
        for client, rate, delta in zip(updates.clients, updates.rates.tolist(), updates.delta, strict=True):
            if rate <= 0:
                continue
            own = -self.c - delta / rate
            self.news[client] = own + self.own[client] if client in self.own else own

    def end_round(self) -> None:
        change = sum(new - self.own[client] if client in self.own else new for client, new in self.news.items())
        self.c = self.c + change / self.count
        self.own |= self.news

    def state_dict(self) -> dict:
        return {**super().state_dict(), "c": self.c, "own": self.own, "news": self.news}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.c = state["c"].to(self.c.device)
        for name in ("own", "news"):
            setattr(self, name, {client: value.to(self.c.device) for client, value in state[name].items()})


class Correction(Hook):
    """After the optimizer's step, one more along a vector of the client's own."""

    replicas = True
    shift: Tensor | None = None  # (K, P)

    def step(self, run) -> None:
        run.weights.add_(self.shift.view_as(run.weights.data), -run.optimizer.param_groups[0]["lr"])
