"""Adam and AdamW."""

import torch

from runner.optim import addcdiv_, addcmul_, given, plus
from runner.schema import NonNegative, OpenFraction, Positive
from runner.weights import column


class Adam(torch.optim.Optimizer):
    """Adam (Kingma & Ba 2015, arXiv:1412.6980, algorithm 1); with `decoupled` AdamW (Loshchilov & Hutter 2019,
    arXiv:1711.05101, algorithm 2, where the schedule multiplies the decay too).

        decoupled: w = w - lr * weight_decay * w      otherwise: g = grad + weight_decay * w
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g^2
        w = w - lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)
    """

    elementwise = True

    def __init__(
        self,
        params,
        lr: NonNegative = 1e-3,
        betas: tuple[OpenFraction, OpenFraction] = (0.9, 0.999),
        eps: Positive = 1e-8,
        weight_decay: NonNegative = 0.0,
        decoupled: bool = False,
    ):
        super().__init__(
            params, dict(lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay, decoupled=decoupled)
        )

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            lr, (beta1, beta2), eps, decay = group["lr"], group["betas"], group["eps"], group["weight_decay"]
            for w in group["params"]:
                if w.grad is None:
                    continue
                state = self.state[w]
                if not state:
                    state.update(t=0, m=torch.zeros_like(w), v=torch.zeros_like(w))
                state["t"] += 1
                g = w.grad
                if given(decay) and group["decoupled"]:
                    w.mul_(column(1 - lr * decay, w))
                elif given(decay):
                    g = plus(g, w, decay)
                state["m"].lerp_(g, column(1 - beta1, w))
                addcmul_(state["v"].mul_(column(beta2, w)), g, g, 1 - beta2)
                scale = (1 - beta2 ** state["t"]) ** 0.5
                denominator = state["v"].sqrt().div_(column(scale, w)).add_(column(eps, w))
                addcdiv_(w, state["m"], denominator, -lr / (1 - beta1 ** state["t"]))
        return loss
