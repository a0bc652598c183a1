"""FedNova."""

import torch
from torch import Tensor

from runner.federated.clients import Updates
from runner.federated.fedavg import FedAvg


class FedNova(FedAvg):
    """Normalised averaging (Wang et al., NeurIPS 2020, arXiv:2007.07481, equations 6 to 8): clients that take more
    steps do not pull the average towards their own optimum.

        d = (sum_k p_k a_k) * sum_k p_k d_k / a_k

    a_k, the l1 norm of the weights with which a client's S gradients enter its update:
    S for plain SGD, (S - m (1 - m^S) / (1 - m)) / (1 - m) for SGD with momentum m and neither dampening nor Nesterov's
    form, as in the authors' code and in NIID-Bench's. Another optimizer, whose update is no such sum, counts as plain
    SGD, and a learning rate that changes within a round as constant: the paper has neither. With equal local steps it
    is FedAvg.

    Parameters
    ----------
    settings : those of `FedAvg`.
    """

    STATE = (*FedAvg.STATE, "normal", "effective")

    def start(self, run) -> None:
        self.momentum = run.optimizer.param_groups[0].get("momentum", 0.0)
        super().start(run)

    def begin_round(self) -> None:
        super().begin_round()
        self.normal = torch.zeros_like(self.mean)
        self.effective = torch.zeros((), dtype=torch.float64)

    def collect(self, updates: Updates) -> None:
        super().collect(updates)
        p, m, steps = self.shares(updates), self.momentum, updates.steps
        a = (steps - m * (1 - m**steps) / (1 - m)) / (1 - m)
        self.effective += (p * a).sum()
        self.normal += torch.mv(updates.delta.T, (p / a).to(self.normal))

    def direction(self) -> Tensor:
        total = self.total.item()
        return self.normal * (self.effective.item() / total**2)
