"""SPL+: a stochastic prox-linear step for the conditional value-at-risk."""

import torch

from runner.core import distributed
from runner.core.schema import OpenFraction, Positive
from runner.core.weights import column
from runner.hook import Hook
from runner.risk.mean import Mean
from runner.sharpness.none import Plain


class SPLPlus(Hook):
    """Scale the gradient by a closed form, so that descent minimises the mean of the worst 1 - beta of the losses
    (Meng & Gower, ICML 2023, arXiv:2305.17498).

    A step minimises the model in which only the loss L is made linear, but neither the maximum nor alpha:

        alpha + max(L + <g, v - w> - alpha, 0) / (1 - beta) + ||v - w||^2 / (2 lr) + (alpha - alpha_t)^2 / (2 c)

    over v and alpha, with g = grad L(w). The solution, derived here from that problem:

        n = clip((L - alpha_t + c) / (c + lr * ||g||^2), 0, 1 / (1 - beta))
        v = w - lr * n * g,   alpha = alpha_t + c * (n - 1),   c = ratio * lr

    The hook hands n * g to the optimizer; plain SGD (no momentum, no decay) then makes that step, with the scheduled
    learning rate as lr. L is what was minimised on the batch: with risk=mean the batch counts as one draw, and only
    train.batch_size=1 gives the CVaR of the samples' losses. A run that is otherwise says before it starts that its
    steps are not SPL+.

    Not settled: how the paper scales the two steps. It says that SPL+ adapts to the scale of the loss, but neither its
    text beyond the introduction nor code could be found. So c is a multiple of lr here, and the default, 1, is one step
    for both.

    Parameters
    ----------
    beta : level of the quantile, in [0, 1). Default 0.9: the worst tenth, the paper's example.
    ratio : c / lr, in squares of the loss over squares of the weights. Default 1.
    """

    replicas = True

    def __init__(self, beta: OpenFraction = 0.9, ratio: Positive = 1.0):
        self.beta = beta
        self.ratio = ratio

    def start(self, run) -> None:
        self.alpha = torch.zeros_like(run.weights.data[..., 0])
        if other := unlike(run):
            run.notices.append(
                "hook=spl_plus: SPL+ is the step of plain SGD on single samples; with "
                f"{', '.join(other)} the gradient is scaled as there, and the step is another"
            )

    def gradient(self, run) -> None:
        grad, lr = run.weights.grad, run.optimizer.param_groups[0]["lr"]
        c, loss = self.ratio * lr, distributed.sum_(run.value.clone())
        scale = (loss - self.alpha + c) / (c + lr * run.weights.dot(grad, grad)).clamp(min=1e-30)  # lr may be 0
        scale = ((1 - self.beta) * scale).clamp(0, 1) / (1 - self.beta)
        grad.mul_(column(scale, grad))
        self.alpha.add_(c * (scale - 1))

    def state_dict(self) -> dict:
        return {"alpha": self.alpha}

    def load_state_dict(self, state: dict) -> None:
        self.alpha.copy_(state["alpha"])


def unlike(run) -> list[str]:
    """What makes the run's step another than that of SPL+."""
    optimizer, group = type(run.optimizer).__name__, run.optimizer.param_groups[0]
    found = [] if optimizer == "SGD" else [f"optimizer {optimizer}"]
    found += ["groups of parameters"] if len(run.optimizer.param_groups) > 1 else []
    found += [f"optim.{key}={group[key]:g}" for key in ("momentum", "weight_decay") if group.get(key)]
    found += [f"train.batch_size={run.train.batch_size}"] if run.train.batch_size > 1 else []
    found += [] if isinstance(run.sharpness, Plain) else [f"sharpness method {type(run.sharpness).__name__}"]
    return found + ([] if isinstance(run.risk, Mean) else [f"risk {type(run.risk).__name__}"])
