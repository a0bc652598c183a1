"""Balances: how the gradients of several objectives become the one to step with."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from torch import Tensor

Of = Literal["tasks", "domains", "terms"]


class Balance:
    """Base of every balance, and `balance=none`: one objective, one backward pass.

    What has an `of` gets T objectives instead, of which each pass makes the gradients one by one: the rows of a (T, P)
    matrix. The risk, as composed, is taken of every part:

    - tasks: of each task's losses, of a data set with several targets a sample;
    - domains: of the samples of each domain. A domain without a sample in the batch takes no part in the step;
    - terms: of the whole batch; and the penalty of every hook is an objective of its own, in the hooks' order.

    Of tasks and domains every objective has the hooks' penalties. The recorded loss is the mean of the objectives, and
    the gradient has the scale of the mean of the rows, so that a learning rate means the same with and without. Methods
    see K runs at once, one alone being K = 1. Coordinates that only one task moves, such as those of its head, get the
    mean of the rows and are zero in what a method sees. One that remembers is a `runner.hook.Hook` too: it looks in
    `step`, and its state is in the checkpoint with the other hooks'.

    Attributes
    ----------
    of : tasks, domains or terms. None: there is nothing to balance.
    replicas : whether any number of its own may be (K,), for runs side by side. Default False: it has none, or they are
        not trained side by side.
    """

    of: Of | None = None
    replicas: bool = False

    def weigh(self, gram: Tensor, values: Tensor, draws: Sequence[np.random.Generator]) -> Tensor:
        """(K, T): the gradient is the sum of the rows with these weights.

        gram : (K, T, T) fp64, the products of the rows. values : (K, T), the objectives. draws : a generator for each
        run, the same in all passes of a step.
        """
        raise NotImplementedError

    def combine(self, rows: Tensor, gram: Tensor, values: Tensor, draws: Sequence[np.random.Generator]) -> Tensor:
        """(K, P): the gradient, of rows (K, T, P). Default: by `weigh`."""
        return (self.weigh(gram, values, draws).to(rows).unsqueeze(-2) @ rows).squeeze(-2)
