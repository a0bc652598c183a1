"""Adaptive SAM."""

import torch

from runner.core.batch import Pass
from runner.core.schema import Count, NonNegative
from runner.core.weights import Weights, column
from runner.sharpness import Closure, Sharpness, nameless


class ASAM(Sharpness):
    """ASAM (Kwon et al., ICML 2021, arXiv:2102.11600, equation 4 and algorithm 1, p = 2): SAM in a neighbourhood that
    scales with the weights.

        e = rho * T^2 g / ||T g||_2,   T = |w| + eta for tensors whose name contains 'weight', 1 elsewhere

    As in the authors' code (SamsungLabs/ASAM, asam.py): scales of normalisation layers are called 'weight' and so are
    normalised, biases are not; 1e-16 is added to the norm. What stands in a weight's place under another name has T = 1
    too, and a run says so: the factors of quantization=littlebit (with which the norm is of factors, not of the layer
    that they make), position embeddings. The paper's radii are about ten times SAM's (0.5 for CIFAR-10, 1.0 for
    CIFAR-100, eta 0.01) and do not compare with ports that normalise biases too.

    Parameters
    ----------
    rho : radius. Default 0.5.
    eta : added to |w|, so that small weights can move. Default 0.01.
    m : samples that share one perturbation. Default null: the whole batch.
    """

    replicas = True

    def __init__(self, rho: NonNegative = 0.5, eta: NonNegative = 0.01, m: Count | None = None):
        self.rho = rho
        self.eta = eta
        self.m = m

    def __call__(self, closure: Closure, weights: Weights) -> Pass:
        first = closure()
        scale = self._scale(weights)
        scaled = weights.grad * scale
        with weights.restored():
            weights.add_(scaled * scale, self.rho / (weights.norm(scaled) + 1e-16))
            closure()
        return first

    def notices(self, run) -> list[str]:
        if names := nameless(run.weights):
            return [f"sharpness=asam: T = 1, as for biases, for what is not called a weight: {names}"]
        return []

    def _scale(self, weights: Weights) -> torch.Tensor:
        scale = weights.data.abs().add_(column(self.eta, weights.data))
        for name, view in weights.views(scale):
            if "weight" not in name:
                view.fill_(1.0)
        return scale
