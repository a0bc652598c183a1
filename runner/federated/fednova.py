"""FedNova."""

import torch
from torch import Tensor

from runner.federated.clients import Updates
from runner.federated.fedavg import FedAvg
from runner.optim.sgd import SGD


class FedNova(FedAvg):
    """Normalised averaging (Wang et al., NeurIPS 2020, arXiv:2007.07481, equations 6 to 8): clients that take more
    steps do not pull the average towards their own optimum.

        d = (sum_k p_k a_k) * sum_k p_k d_k / a_k

    a_k, the l1 norm of the weights with which a client's S gradients enter its update:
    S for plain SGD, (S - m (1 - m^S) / (1 - m)) / (1 - m) for SGD with momentum m, as in the authors' code and in
    NIID-Bench's; an L2 decay is part of the gradients, as there. With dampening or Nesterov's form the weights are
    others, which that code leaves out of account: refused. Another optimizer, whose update is no such sum, counts as
    plain SGD, and a learning rate that changes within a round as constant. With equal local steps it is FedAvg. S
    counts the steps that were taken, without those that fp16 skipped; who took none is in neither sum.

    Parameters
    ----------
    settings : those of `FedAvg`.

    Raises
    ------
    ValueError
        SGD with dampening or Nesterov's form.
    """

    STATE = (*FedAvg.STATE, "normal", "effective", "moved")

    def start(self, run) -> None:
        settings, known = run.optimizer.param_groups[0], isinstance(run.optimizer, SGD | torch.optim.SGD)
        self.momentum = settings["momentum"] if known else 0.0
        for name, off in (("nesterov", "false"), ("dampening", "0")):
            if self.momentum and settings[name]:
                raise ValueError(f"fednova's a_k is that of SGD with plain momentum: set optim.{name}={off}")
        super().start(run)
        if not known:
            run.notices.append(
                f"{type(run.optimizer).__name__}'s update is no weighted sum of gradients: a client's a_k in fednova "
                "is the number of its steps, as for plain SGD"
            )

    def begin_round(self) -> None:
        super().begin_round()
        self.normal = torch.zeros_like(self.mean)
        self.effective, self.moved = torch.zeros(2, dtype=torch.float64).unbind()

    def collect(self, updates: Updates) -> None:
        super().collect(updates)
        p, m, steps = self.shares(updates) * (updates.steps > 0), self.momentum, updates.steps
        a = (steps - m * (1 - m**steps) / (1 - m)) / (1 - m)
        self.moved += p.sum()
        self.effective += (p * a).sum()
        self.normal += torch.mv(updates.delta.T, (p / a.where(steps > 0, 1.0)).to(self.normal))

    def direction(self) -> Tensor:
        total = self.moved.item()
        return self.normal * (self.effective.item() / total**2 if total else 0.0)
