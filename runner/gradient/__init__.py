"""Gradients: how a pass over a batch makes one."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from runner.core.batch import Batch, Output

if TYPE_CHECKING:
    from runner.engine.trainer import Trainer


class Gradient:
    """Base of every option of `gradient`, and `gradient=backprop`: reverse-mode differentiation.

    What defines `estimate` makes every gradient of the run instead: those of sharpness methods, of micro-batches and of
    processes, which are put together as ever.
    """

    def begin(self, run: "Trainer", example: Batch) -> None:
        """Before the first step. Raises ValueError where this run cannot have such a gradient."""

    def estimate(
        self, run: "Trainer", objective: Callable[[], tuple[Tensor, Output]], draw: np.random.Generator
    ) -> tuple[Tensor, Output, Tensor]:
        """(objective, the model's output, its gradient (P,)) at the present weights, all without a graph.

        objective : evaluates the model, the loss and the hooks' penalties, without a loss scale. Any number of calls
            see the same random numbers and are one function of the weights. draw : for this pass; all micro-batches and
            processes of a pass get the same numbers, so that their gradients add up.
        """
        raise NotImplementedError
