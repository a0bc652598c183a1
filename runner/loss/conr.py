"""Contrastive regulariser for imbalanced regression."""

from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from runner.core.batch import Batch, Output
from runner.core.precision import wide
from runner.core.schema import NonNegative, Positive, When
from runner.loss import Loss


class ConR(Loss):
    """Absolute error plus ConR (Keramati et al., ICLR 2024, arXiv:2309.06651), for one output.

        L_i = |y_i - z_i| + beta * C_i
        C_i = mean_{j in P_i} -log (e^{s_ij} / (sum_{k in P_i} e^{s_ik} + sum_{k in N_i} e^{e |y_i - y_k|} e^{s_ik}))

        s_ij = cos(f_i, f_j) / temperature
        P_i  the other samples of the batch with |y_i - y_j| <= window
        N_i  those with |y_i - y_j| > window, but |z_i - z_j| <= window: the network confuses them

    C_i = 0 for a sample without a negative, as in the paper, or without a positive. Only the features f have a gradient
    from C, as in the authors' code (BorealisAI/ConR, agedb-dir). The weights that this code takes for rare targets are
    left out of the negatives' factor; those of a batch multiply L_i.

    Where code and paper differ, this is the paper's: the code multiplies the exponents of all pairs that are not
    positive by zero, so that each of them, the sample itself included, adds 1 to the denominator. The authors compute C
    on two augmented views of every image; here it is the batch as it is, of which positives are other samples.

    Parameters
    ----------
    beta : weight of the regulariser. Default 4. 0 is the absolute error.
    window : in the units of y. Default 1 (a year of age); for a standardised target it has to be set.
    temperature : default 0.07, which the code uses whatever its argument says; that argument's default is 0.2.
    e : of the factor of a negative. Default 0.01.
    """

    tasks = ("regression",)
    padding = False

    def __init__(
        self,
        beta: NonNegative = 4.0,
        window: Annotated[NonNegative, When("beta", 0, but=True)] = 1.0,
        temperature: Annotated[Positive, When("beta", 0, but=True)] = 0.07,
        e: Annotated[NonNegative, When("beta", 0, but=True)] = 0.01,
    ):
        super().__init__()
        self.beta = beta
        self.window = window
        self.temperature = temperature
        self.e = e

    def forward(self, out: Output, batch: Batch) -> Tensor:
        z = wide(out.logits).squeeze(-1)
        y = batch.y.to(z.dtype)
        f = F.normalize(wide(out.features), dim=-1)
        s = (f @ f.mT).to(z.dtype) / self.temperature
        apart = (y.unsqueeze(-1) - y.unsqueeze(-2)).abs()
        confused = (z.detach().unsqueeze(-1) - z.detach().unsqueeze(-2)).abs() <= self.window
        near, other = apart <= self.window, ~torch.eye(len(y), dtype=torch.bool, device=y.device)
        positive, negative = near & other, ~near & confused
        never = torch.finfo(z.dtype).min / 2  # finite: a row without any pair has a gradient of zero then, not nan
        terms = torch.where(positive, s, torch.where(negative, s + self.e * apart, never))
        total = torch.logsumexp(terms, -1, keepdim=True)
        mean = torch.where(positive, total - s, 0.0).sum(-1) / positive.sum(-1).clamp_min(1)
        return (y - z).abs() + self.beta * torch.where(negative.any(-1), mean, 0.0)
