"""The plain gradient."""

from runner.batch import Pass
from runner.sharpness import Closure, Sharpness
from runner.weights import Weights


class Plain(Sharpness):
    """The gradient of the risk at w: one pass."""

    replicas = True

    def __call__(self, closure: Closure, weights: Weights) -> Pass:
        return closure()
