"""FedLEx."""

from typing import Annotated

import torch
from torch import Tensor

from runner.core import keyed
from runner.core.schema import Count, Range
from runner.federated.fedavg import FedAvg
from runner.hook import Hook


class FedLEx(FedAvg):
    """FedAvg whose clients' gradients are guided by an exploration (Internò et al., arXiv:2506.18640).

    Before the first round explorers train from the initial weights w_0 on their own data. Then, for every tensor,

        D = mean over the explorers of (w_i - w_0)^2        elementwise
        G = (D - min D) / (max D - min D)                   1 where D is constant
        every client's gradient, in all rounds:  g <- G * g, before clipping and before the optimizer

    What moved most keeps its gradient, and what moved least has none any more, in every tensor. An optimizer that
    divides by the size of its gradients undoes most of G.

    This is our reading of the released code (ChristianInterno/FedLEx at 35c2437, ff03c80 and 69ed581: GTL_utils.py,
    client/fedlexclient.py, server/fedlexserver.py), which cannot be followed to the letter: its explorers share one
    model and overwrite the weights that they started from, the explored weights are a placeholder of ones since 2025,
    and where all clients explore, G is made anew of every round's clients. The abstract has one matrix, made at the
    start. The paper's text beyond it could not be read. In the code, all clients explore, for up to 150 epochs.

    The exploration's schedule is that of a run of its own, and no line of the record counts its work or its traffic:
    the model down and up for every explorer, and G down for every client.

    Parameters
    ----------
    explorers : share of the clients that explore, drawn from the seed. Default 1.
    explore_epochs : passes over an explorer's samples. Default 5, of our own: the abstract has "a small number".
    settings : those of `FedAvg`.
    """

    def __init__(
        self,
        explorers: Annotated[float, Range(0, 1, open_low=True)] = 1.0,
        explore_epochs: Count = 5,
        **settings,
    ):
        super().__init__(**settings)
        self.client = Guide()
        drawn = max(1, round(explorers * self.count))
        self.explorers = sorted(keyed.generator(self.seed, "explorers").permutation(self.count)[:drawn].tolist())
        self.explore_epochs = explore_epochs
        self.explored: list[int] = []  # explorers that are back
        self.squares = torch.zeros_like(self.weights.data)  # of how far they went, summed
        self.guide: Tensor | None = None  # (P,) G

    def brief(self, hook: Hook, clients: list[int]) -> None:
        hook.guide = self.guide

    def _answers(self, trainer, clients: list[int], round_: int, answered: list[int]):
        if self.guide is None and clients:
            self._explore(trainer)
        yield from super()._answers(trainer, clients, round_, answered)

    def epochs(self, run):
        yield from super().epochs(run)
        for client in self.explorers:
            yield self.clients.kept[client], self.clients.per_epoch[client], f"client {client}'s"

    def _explore(self, trainer) -> None:
        clients = self.clients
        kept = clients.steps, clients.rounds, trainer.loss_sum.clone(), trainer.correct.clone(), trainer.samples
        clients.steps, clients.rounds = [self.explore_epochs * count for count in clients.per_epoch], 1
        try:
            for updates, back in super()._answers(trainer, self.explorers, 0, list(self.explored)):
                if updates is not None:
                    self.squares += updates.delta.square().sum(0)
                self.explored += back
        finally:
            clients.steps, clients.rounds, loss_sum, correct, trainer.samples = kept
            trainer.loss_sum.copy_(loss_sum), trainer.correct.copy_(correct)
            trainer.steps = self.rounds
        self.guide = torch.ones_like(self.squares)
        for place in trainer.weights.places:
            span = slice(place.start, place.start + place.size.numel())
            low, high = self.squares[span].aminmax()
            if high > low:
                self.guide[span] = (self.squares[span] - low) / (high - low)

    def state_dict(self) -> dict:
        own = {"explored": self.explored, "squares": self.squares, "guide": self.guide}
        return {**super().state_dict(), "exploration": own}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        own = state["exploration"]
        self.explored, self.squares = list(own["explored"]), own["squares"].to(self.squares.device)
        self.guide = None if own["guide"] is None else own["guide"].to(self.squares.device)


class Guide(Hook):
    """Multiplies the gradient elementwise."""

    replicas = True
    guide: Tensor | None = None  # (P,)

    def gradient(self, run) -> None:
        if self.guide is not None:
            run.weights.grad.mul_(self.guide)
