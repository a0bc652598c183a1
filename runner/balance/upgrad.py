"""UPGrad: each gradient moved by as little as no objective minds."""

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from runner.balance import Balance, Of

REGULAR = 1e-4  # of the trace, on the diagonal


class UPGrad(Balance):
    """The mean of the rows after each is projected onto the cone of directions that agree with every row (Quinton &
    Rey 2024, arXiv:2406.16232).

        gradient = (1/T) sum_i J' v_i,   v_i = argmin over v >= e_i of  v' G v,   G = J J'

    A step against it raises no objective, to first order. As in the authors' library (torchjd) G is divided by its
    trace and has 1e-4 on its diagonal, so that rows that are almost opposite do not make v large; the library takes a
    trace below 1e-4 for 0 besides, which makes small gradients their mean, and this does not. Each problem is solved
    exactly, as non-negative least squares on the CPU: with a GPU a step waits for the device once a pass.

    Parameters
    ----------
    of : tasks, domains or terms. Default tasks.
    """

    replicas = True

    def __init__(self, of: Of = "tasks"):
        self.of = of

    def weigh(self, gram: Tensor, values: Tensor, draws) -> Tensor:
        return torch.from_numpy(np.stack([mean_of_projections(own) for own in gram.cpu().numpy()])).to(gram.device)


def mean_of_projections(gram: np.ndarray) -> np.ndarray:
    """(T,) of (T, T). With v = e + s and G = L L', v' G v = |L's + L'e|^2: least squares in s >= 0."""
    count, trace = len(gram), gram.trace()
    root = np.linalg.cholesky(gram / (trace or 1.0) + REGULAR * np.eye(count)).T
    return np.mean([e + nnls(root, -root @ e)[0] for e in np.eye(count)], 0)
