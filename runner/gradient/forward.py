"""Gradients without backpropagation: directional derivatives."""

import copy
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from runner.core.batch import Batch, Output
from runner.core.schema import Count
from runner.gradient import Gradient


class Forward(Gradient):
    """The forward gradient (Baydin et al. 2022, arXiv:2202.08587): with v ~ N(0, I) over all weights,

        g = (grad f . v) v        E[g] = grad f

    by one forward-mode pass, without a backward one: no activations are kept. Its variance grows with the number of
    weights, E|g|^2 = (P + 2) |grad f|^2, so a learning rate has to be smaller by about as much. Every pass of a step,
    as SAM's second one, draws a v of its own.

    Parameters
    ----------
    samples : int, default 1
        g is the mean over so many v, at so many passes.
    """

    def __init__(self, samples: Count = 1):
        self.samples = samples

    def begin(self, run, example: Batch) -> None:
        """Raises ValueError where the model as it is, the loss or a penalty has no forward-mode derivative."""

        def objective() -> tuple[Tensor, Output]:
            out = run.loss.ask(run.outputs, batch)
            return run.loss(out, batch).sum() + sum(penalty(run, out, batch) for penalty in run.hooks.losses), out

        here, states = run.draws.where(), copy.deepcopy(run.hooks.state_dict())
        batch = run.hooks.batch(run, example)
        try:
            with run.statistics(live=False), warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # torch's own, when it first needs such derivatives
                self.estimate(run, objective, np.random.default_rng(0))
        except (NotImplementedError, RuntimeError) as error:
            raise ValueError(f"something here has no forward-mode derivative ({str(error).splitlines()[0]})") from error
        finally:
            run.draws.go(here)
            run.hooks.load_state_dict(states)

    def estimate(self, run, objective: Callable[[], tuple[Tensor, Output]], draw) -> tuple[Tensor, Output, Tensor]:
        weights, whole = run.weights, _Whole(run.model, run.loss, run.risk)
        names = {id(parameter): name for name, parameter in whole.named_parameters()}
        generator = torch.Generator(run.device).manual_seed(int(draw.integers(2**62)))
        grad = torch.zeros_like(weights.data)
        for _ in range(self.samples):
            noise = torch.randn(grad.shape, generator=generator, device=grad.device, dtype=grad.dtype)
            v = weights.flatten(view for _, view in weights.views(noise))  # 0 between the tensors
            with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
                duals = {
                    names[id(parameter)]: forward_ad.make_dual(parameter.detach(), tangent)
                    for parameter, (_, tangent) in zip(weights.parameters, weights.views(v), strict=True)
                }
                loss, out = functional_call(whole, duals, (objective,))
                loss, slope = forward_ad.unpack_dual(loss)
                out = out.each(lambda value: forward_ad.unpack_dual(value).primal)
            if slope is not None:
                grad.addcmul_(v, slope / self.samples)
        return loss, out, grad


class _Whole(nn.Module):
    """All that has weights, so that `functional_call` swaps them while the objective is evaluated."""

    def __init__(self, model: nn.Module, loss: nn.Module, risk: nn.Module):
        super().__init__()
        self.model, self.loss, self.risk = model, loss, risk

    def forward(self, objective: Callable[[], tuple[Tensor, Output]]) -> tuple[Tensor, Output]:
        return objective()
