"""Gradient clipping."""

from runner.core.schema import Positive
from runner.core.weights import column
from runner.hook import Hook


class Clip(Hook):
    """Clip the gradient's norm (Pascanu et al., ICML 2013, arXiv:1211.5063, algorithm 1):

        g = g * min(1, norm / (||g||_2 + 1e-6)),   the norm over all trainable parameters.

    It acts on the gradient that the sharpness method returned, after unscaling and reduction over devices. The 1e-6 is
    that of torch.nn.utils.clip_grad_norm_. Default norm: 1.
    """

    replicas = True

    def __init__(self, norm: Positive = 1.0):
        self.norm = norm

    def gradient(self, run) -> None:
        grad = run.weights.grad
        grad.mul_(column((self.norm / (run.weights.norm(grad) + 1e-6)).clamp(max=1.0), grad))
