"""Spectral risks of a batch, and of the whole set by Prospect's memory of losses."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from runner.core import distributed
from runner.core.batch import Batch
from runner.core.reach import Begin
from runner.core.schema import NonNegative
from runner.risk import Risk
from runner.risk.mean import weighted


class Spectral(Risk):
    """The expectation under the worst shift of the data that a spectrum s allows, with a penalty on the shift
    (Mehta et al., AISTATS 2023, arXiv:2212.05149; with the penalty Mehta et al., ICLR 2024, arXiv:2310.13863).

        max over p of  (1/n) sum_i (p_i l_i - nu / 2 * (p_i - 1)^2),   p in the convex hull of s's permutations
        s_i = n * (S(i/n) - S((i-1)/n))    extremile: S(u) = u^r,   superquantile: S(u) = max(u - r, 0) / (1 - r),
                                           esrm: S(u) = (e^{r u} - 1) / (e^r - 1)

    p is n times the papers' q, so that p = 1 is the mean; s grows with i and belongs to the i-th smallest loss. The
    solution, by isotonic regression of l - nu * s over the sorted losses, is p_i = mean_C(s) + (l_i - mean_C(l)) / nu
    in every block C that the regression pools; nu = 0 gives p = s, where equal losses share. The gradient is that of p
    at rest. The half before nu, the three spectra and the values r = 2, 0.5 and 1 are those of the authors' code
    (ronakdm/prospect), whose introduction writes the penalty without the half. superquantile with nu = 0 is the mean
    of the worst 1 - r.

    Without `memory`, n is the batch: the subgradient method of both papers, biased towards the mean in small batches.
    It compares all pairs: memory and time grow with B^2. With it, n is the training set, as in Prospect:

        risk = (1/B) sum_i p_i l_i,   p solved for the last known losses of all samples, after every step

    That is Prospect's estimate without its table of gradients (n times the weights): as free of bias, but with the
    variance of a batch. Prospect measures all losses at first; here p is 1 until every sample has been seen once.
    p costs one sort of n losses a step, on the CPU. Weights multiply the losses before they are ranked. Losses (B,)
    or, without `memory`, (B, T) taken as B * T losses, give a scalar.

    Parameters
    ----------
    spectrum : extremile, superquantile or esrm. Default extremile.
    parameter : r; at least 1 for extremile, in [0, 1) for superquantile, above 0 for esrm. Default 2.
    nu : weight of the penalty. Default 1, as in the authors' code.
    memory : whether losses are ranked among the whole training set's. Default false.

    Raises
    ------
    ValueError
        The parameter is outside its range; losses that are not (B,) with `memory`.
    """

    def __init__(
        self,
        samples: int,
        spectrum: Literal["extremile", "superquantile", "esrm"] = "extremile",
        parameter: float = 2.0,
        nu: NonNegative = 1.0,
        memory: bool = False,
    ):
        super().__init__()
        fits = {"extremile": parameter >= 1, "superquantile": 0 <= parameter < 1, "esrm": parameter > 0}
        if not fits[spectrum]:
            needed = {"extremile": "at least 1", "superquantile": "in [0, 1)", "esrm": "above 0"}[spectrum]
            raise ValueError(f"parameter={parameter}: the spectrum {spectrum} needs one {needed}")
        self.spectrum, self.parameter, self.nu, self.memory = spectrum, parameter, nu, memory
        n = samples if memory else 0
        self.register_buffer("losses", torch.full((n,), torch.inf))  # until seen
        self.register_buffer("p", torch.ones(n))

    def sigma(self, n: int, like: Tensor) -> Tensor:
        """The spectrum s (n,), in growing order."""
        u, r = torch.arange(n + 1, device=like.device, dtype=like.dtype) / n, self.parameter
        if self.spectrum == "extremile":
            total = u**r
        elif self.spectrum == "superquantile":
            total = (u - r).clamp(min=0) / (1 - r)
        else:
            total = torch.expm1(r * u) / torch.expm1(r * torch.ones_like(u))
        return n * total.diff().to(like.dtype)

    def worst(self, losses: Tensor) -> Tensor:
        """p (n,) for losses (n,), by operations that vmap knows."""
        order = losses.argsort()
        sorted_, sigma = losses[order], self.sigma(len(losses), losses)
        place = torch.arange(len(losses), device=losses.device)
        values = sorted_ - sorted_.mean() - self.nu * (sigma - 1)
        sums = torch.cat([values.new_zeros(1), values.cumsum(0)])
        means = (sums[1:] - sums[:-1, None]) / (place - place[:, None] + 1).clamp(min=1)  # [j, k]: from j to k
        upper = place[:, None] <= place
        least = means.where(upper, torch.inf).flip(1).cummin(1).values.flip(1)  # [j, i]: over all k from i on
        fitted = least.where(upper, -torch.inf).amax(0)
        block = torch.cat([place[:1], (fitted.diff() != 0).cumsum(0)])
        same = (block[:, None] == block).to(losses.dtype)
        same = same / same.sum(1, keepdim=True)
        nu = torch.as_tensor(self.nu, device=losses.device, dtype=losses.dtype)
        inverse = (nu > 0) / nu.where(nu > 0, 1.0)
        p = same @ sigma + (sorted_ - same @ sorted_) * inverse
        return p[order.argsort()]

    @property
    def ranks(self) -> bool:
        return not self.memory

    def notices(self, run) -> list[str]:
        if self.parameter == {"extremile": 1, "superquantile": 0}.get(self.spectrum):
            return [f"risk.parameter={self.parameter}: this {self.spectrum} weighs all alike, so that it is the mean"]
        return super().notices(run)

    def begins(self, steps: int, steps_per_epoch: int) -> Iterable[Begin]:
        if self.memory:
            yield Begin("a loss of every sample (memory=true)", steps_per_epoch, "the risk is the plain mean")

    def forward(self, losses: Tensor, batch: Batch) -> Tensor:
        losses = weighted(losses, batch)
        if self.memory:
            if losses.dim() != 1:
                raise ValueError(f"risk.memory needs one loss for each sample, got {tuple(losses.shape)}")
            every, p = self.p, self.p[batch.index]
        else:
            losses = losses.flatten()
            every = p = self.worst(losses.detach())
        return (p * losses).mean() - (self.nu / 2 * (every - 1).square().mean()).to(losses.dtype)

    def observe(self, losses: Tensor, batch: Batch, step: int, steps: int) -> None:
        if not self.memory:
            return
        for index, values in distributed.all_of((batch.index, weighted(losses, batch))):
            self.losses[index.to(self.losses.device)] = values.to(self.losses)
        if not self.losses.isinf().any():
            self.p.copy_(self.solved(self.losses.cpu().double()))

    def solved(self, losses: Tensor) -> Tensor:
        """What `worst` gives, for many losses."""
        from scipy.optimize import isotonic_regression

        (sorted_, order), sigma = losses.sort(), self.sigma(len(losses), losses)
        blocks = isotonic_regression((sorted_ - self.nu * sigma).numpy()).blocks
        sizes = torch.from_numpy(blocks).diff()

        def mean(values: Tensor) -> Tensor:
            """Over everyone's block."""
            return torch.segment_reduce(values, "mean", lengths=sizes).repeat_interleave(sizes)

        shift = (sorted_ - mean(sorted_)) / self.nu if self.nu > 0 else 0.0
        return torch.empty_like(losses).scatter_(0, order, mean(sigma) + shift)
