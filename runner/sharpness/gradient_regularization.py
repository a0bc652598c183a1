"""Gradient regularization by finite differences."""

from typing import Literal

from runner.core.batch import Pass
from runner.core.schema import Count, NonNegative, Positive
from runner.core.weights import Weights, column
from runner.sharpness import Closure, Sharpness


class GradientRegularization(Sharpness):
    """Descend L + gamma / 2 * ||grad L||^2, its second term differentiated by a finite difference (Karakida et al.,
    ICML 2023, arXiv:2210.02720, algorithm 1).

        g + gamma * (grad L(w + e g) - g) / e     forward  (F-GR): a step of ascent first
        g + gamma * (g - grad L(w - e g)) / e     backward (B-GR): a step of descent first,     g = grad L(w)

    Both tend to g + gamma * H g as e vanishes and cost two passes; double backpropagation, which gives that limit,
    costs more. The ascent is not normalised: with e = gamma the forward form is grad L(w + gamma g), SAM's gradient
    with the gradient's own length as the radius.

    For WRN-28-10 the paper tunes gamma in {1e-4, 1e-3, 1e-2, 1e-1} and e in {0.01, 0.02, 0.05, 0.1, 0.2, 0.5}, finds
    the forward form with a large e best, and has no default; the authors' repository has no code. The defaults here are
    two of these values. The norm is over all trainable parameters, and the optimizer's decay is not part of L.

    Parameters
    ----------
    gamma : weight of the penalty. Default 0.1.
    epsilon : length of the step, in units of the gradient. Default 0.1.
    form : forward or backward. Default forward.
    m : samples that share one step (see `Sharpness.m`). Default null: the whole batch.
    """

    replicas = True

    def __init__(
        self,
        gamma: NonNegative = 0.1,
        epsilon: Positive = 0.1,
        form: Literal["forward", "backward"] = "forward",
        m: Count | None = None,
    ):
        self.gamma = gamma
        self.epsilon = epsilon
        self.form = form
        self.m = m

    def __call__(self, closure: Closure, weights: Weights) -> Pass:
        first = closure()
        gradient = weights.grad.clone()
        step = self.epsilon if self.form == "forward" else -self.epsilon
        with weights.restored():
            weights.add_(gradient, step)
            closure()
        weights.grad.lerp_(gradient, column(1 - self.gamma / step, gradient))  # gamma = step: exactly what is there
        return first
