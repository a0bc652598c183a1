"""FedProx."""

from torch import Tensor

from runner.core.schema import NonNegative
from runner.federated.fedavg import FedAvg
from runner.hook import Hook


class FedProx(FedAvg):
    """FedAvg whose clients are held to the global model (Li et al., MLSys 2020, arXiv:1812.06127, algorithm 2).

        client k minimises  F_k(w) + mu / 2 * |w - w_t|^2,   w_t the server's weights at the start of the round

    The pull mu * (w - w_t) is added to the gradient that the sharpness method returned, at w itself, before the run's
    own hooks: it is clipped with the rest, SAM's perturbation does not see it, and the recorded loss is F_k. The
    paper's gamma-inexact clients are a fixed number of local steps or epochs, as in its experiments. mu = 0 is FedAvg.

    Parameters
    ----------
    mu : weight of the term. Default 0.01; the paper tunes it in {0.001, 0.01, 0.1, 1} and has no default.
    settings : those of `FedAvg`.
    """

    def __init__(self, mu: NonNegative = 0.01, **settings):
        super().__init__(**settings)
        self.client = Pull(mu)

    def start(self, run) -> None:
        super().start(run)
        if max(self.clients.steps) == 1:
            run.notices.append(
                "federated=fedprox: with one step a round its pull is always zero: this is federated=fedavg"
            )

    def brief(self, hook: Hook, clients: list[int]) -> None:
        hook.center = self.weights.data


class Pull(Hook):
    """Adds mu * (w - center) to the gradient."""

    replicas = True

    def __init__(self, mu: float):
        self.mu = mu
        self.center: Tensor | None = None  # (P,)

    def gradient(self, run) -> None:
        run.weights.grad.add_(run.weights.data - self.center, alpha=self.mu)
