"""Sharpness-Aware Minimization."""

from runner.core.batch import Pass
from runner.core.schema import Count, NonNegative
from runner.core.weights import Weights
from runner.sharpness import Closure, Sharpness


class SAM(Sharpness):
    """SAM (Foret et al., ICLR 2021, arXiv:2010.01412, algorithm 1 with p = 2): the gradient at the worst nearby point.

        e = rho * g / (||g||_2 + 1e-12),  g = grad L(w);   the step uses grad L(w + e), without second-order terms.

    The norm is over all trainable parameters, biases and normalisation included, as in the authors' code; the 1e-12 is
    that of davda54/sam. The paper tunes rho in {0.01, 0.02, 0.05, 0.1, 0.2, 0.5} and finds 0.05 on CIFAR-10.

    Parameters
    ----------
    rho : radius of the perturbation. Default 0.05.
    m : samples that share one perturbation (see `Sharpness.m`). Default null: the whole batch.
    """

    replicas = True

    def __init__(self, rho: NonNegative = 0.05, m: Count | None = None):
        self.rho = rho
        self.m = m

    def __call__(self, closure: Closure, weights: Weights) -> Pass:
        first = closure()
        with weights.restored():
            weights.add_(weights.grad, self.rho / (weights.norm(weights.grad) + 1e-12))
            closure()
        return first
