"""The plain gradient."""

from runner.core.batch import Pass
from runner.core.weights import Weights
from runner.sharpness import Closure, Sharpness


class Plain(Sharpness):
    """The gradient of the risk at w: one pass."""

    replicas = True

    def __call__(self, closure: Closure, weights: Weights) -> Pass:
        return closure()
