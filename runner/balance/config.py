"""ConFIG: the direction that is as much each gradient's as any other's."""

import torch
from torch import Tensor

from runner.balance import Balance, Of


class ConFIG(Balance):
    """Conflict-free inverse gradients (Liu et al., ICLR 2025, arXiv:2408.11104, equations 2 and 3).

        d = U^+ 1,   u_t = g_t / |g_t|,   gradient = (1/T) sum_t (g_t . d) d / |d|^2

    U^+ is the pseudo-inverse of the rows u_t: where they are independent, d has the same cosine with all of them. The
    paper adds the lengths g_t . d / |d| up, which is T times as long. With C the cosines d = U' C^+ 1, so that the
    products of the rows are enough. Rows of length zero take no part. The form with momentum, in which a step makes the
    gradient of one objective, is not here.

    Parameters
    ----------
    of : tasks, domains or terms. Default tasks.
    """

    replicas = True

    def __init__(self, of: Of = "tasks"):
        self.of = of

    def weigh(self, gram: Tensor, values: Tensor, draws) -> Tensor:
        length = gram.diagonal(dim1=-2, dim2=-1).sqrt()
        unit = torch.where(length > 0, 1 / length, 0.0)
        cosines = unit.unsqueeze(-1) * gram * unit.unsqueeze(-2)
        rounding = gram.shape[-1] * torch.finfo(values.dtype).eps
        share = torch.linalg.pinv(cosines, hermitian=True, rtol=rounding).sum(-1)
        reach = (cosines @ share.unsqueeze(-1)).squeeze(-1)  # u_t . d
        square = (share * reach).sum(-1, keepdim=True)
        scale = torch.where(square > 0, (length * reach).mean(-1, keepdim=True) / square, 0.0)
        return scale * share * unit
