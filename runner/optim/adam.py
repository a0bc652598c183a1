"""Adam and AdamW."""

from typing import Annotated

import torch
from torch import Tensor

from runner.core.schema import NonNegative, OpenFraction, Positive, When
from runner.core.weights import column
from runner.optim import addcdiv_, addcmul_, given, loss_of, plus, with_gradients


class Adam(torch.optim.Optimizer):
    """Adam (Kingma & Ba 2015, arXiv:1412.6980, algorithm 1); with `decoupled` AdamW (Loshchilov & Hutter 2019,
    arXiv:1711.05101, algorithm 2, where the schedule multiplies the decay too).

        decoupled: w = w - lr * weight_decay * w      otherwise: g = grad + weight_decay * w
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g^2
        w = w - lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    m starts at 0 and v at `v0`, by default 0, which the divisions by 1 - beta^t make up for; without `bias_correction`
    nothing is divided by them. Without it and with v0 = eps^2 this is the server of FedAdam (Reddi et al. 2021,
    arXiv:2003.00295, algorithm 2).
    """

    flat = True

    def __init__(
        self,
        params,
        lr: NonNegative = 1e-3,
        betas: tuple[OpenFraction, OpenFraction] = (0.9, 0.999),
        eps: Positive = 1e-8,
        weight_decay: NonNegative = 0.0,
        decoupled: Annotated[bool, When("weight_decay", 0, but=True)] = False,
        bias_correction: bool = True,
        v0: NonNegative = 0.0,
    ):
        own = dict(lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay, decoupled=decoupled)
        super().__init__(params, own | dict(bias_correction=bias_correction, v0=v0))

    @torch.no_grad()
    def step(self, closure=None):
        loss = loss_of(closure)
        for group, w in with_gradients(self):
            self.update(group, w)
        return loss

    def update(self, group: dict, w: Tensor) -> None:
        lr, (beta1, beta2), eps, decay = group["lr"], group["betas"], group["eps"], group["weight_decay"]
        state = self.state[w]
        if not state:
            state.update(t=0, m=torch.zeros_like(w), v=torch.zeros_like(w).add_(column(group["v0"], w)))
        state["t"] += 1
        g = w.grad
        if given(decay) and group["decoupled"]:
            w.mul_(column(1 - lr * decay, w))
        elif given(decay):
            g = plus(g, w, decay)
        state["m"].lerp_(g, column(1 - beta1, w))
        addcmul_(state["v"].mul_(column(beta2, w)), g, g, 1 - beta2)
        denominator, factor = state["v"].sqrt(), -lr
        if group["bias_correction"]:
            denominator.div_(column((1 - beta2 ** state["t"]) ** 0.5, w))
            factor = -lr / (1 - beta1 ** state["t"])
        addcdiv_(w, state["m"], denominator.add_(column(eps, w)), factor)
