"""Stochastic gradient descent with momentum."""

from typing import Annotated

import torch

from runner.core.schema import NonNegative, OpenFraction, When
from runner.core.weights import column
from runner.optim import add_, given, loss_of, plus, with_gradients


class SGD(torch.optim.Optimizer):
    """SGD with (Nesterov) momentum and L2 decay, in the form of torch.optim.SGD.

        g = grad + weight_decay * w
        v = g at the first step, then momentum * v + (1 - dampening) * g
        w = w - lr * (g + momentum * v  if nesterov  else  v)

    The learning rate multiplies the whole velocity (Sutskever et al., ICML 2013, write it inside the velocity: a change
    of lr then acts with a delay). Defaults: no momentum, no decay.

    Raises
    ------
    ValueError
        nesterov without momentum, or with dampening.
    """

    flat = True

    def __init__(
        self,
        params,
        lr: NonNegative,
        momentum: OpenFraction = 0.0,
        weight_decay: NonNegative = 0.0,
        dampening: Annotated[OpenFraction, When("momentum", 0, but=True)] = 0.0,
        nesterov: bool = False,
    ):
        if nesterov and (momentum == 0 or dampening != 0):
            raise ValueError("nesterov needs momentum above 0 and dampening 0")
        defaults = dict(lr=lr, momentum=momentum, weight_decay=weight_decay, dampening=dampening, nesterov=nesterov)
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure=None):
        loss = loss_of(closure)
        for group, w in with_gradients(self):
            lr, momentum, decay, keep = group["lr"], group["momentum"], group["weight_decay"], 1 - group["dampening"]
            v = None
            if given(momentum):  # g = grad + decay * w is never formed: a temporary costs more than the sum
                state = self.state[w]
                if "velocity" in state:
                    v = add_(state["velocity"].mul_(column(momentum, w)), w.grad, keep)
                    v = add_(v, w, decay * keep) if given(decay) else v
                else:
                    v = state["velocity"] = plus(w.grad, w, decay)
            if v is None or group["nesterov"]:
                if given(decay):
                    w.mul_(column(1 - lr * decay, w))
                add_(w, w.grad, -lr)
            if v is not None:
                add_(w, v, -lr * momentum if group["nesterov"] else -lr)
        return loss
