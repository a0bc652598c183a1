"""Conditional value-at-risk."""

import torch
from torch import Tensor, nn

from runner.core.batch import Batch
from runner.core.schema import OpenFraction
from runner.risk import Risk
from runner.risk.mean import weighted


class CVaR(Risk):
    """The expectation of the worst 1 - beta of the losses, by its variational form (Rockafellar & Uryasev, Journal of
    Risk 2000, theorem 1), minimised over the weights and alpha together.

        CVaR = min over alpha of  alpha + 1 / (1 - beta) * (1/B) sum_i max(w_i l_i - alpha, 0)

    At its best alpha is the beta-quantile of the losses. Here it is a trained parameter, 0 at first: its gradient is
    1 minus the share of losses above it over 1 - beta, and the optimizer, its decay and a sharpness method treat it as
    one more weight. With plain SGD that is the stochastic subgradient method (SGM) with which Meng & Gower (ICML 2023,
    arXiv:2305.17498) compare their SPL+; that step is hook=spl_plus, with risk=mean.

    Unlike risk=top_k, which ranks a batch, alpha remembers the batches before it, so that the objective is that of the
    whole set whatever the batch size. As long as alpha is below all losses, gradients are 1 / (1 - beta) times those of
    the mean. beta = 0 is the mean while alpha is below all losses. Losses (B,), or (B, T) taken as B * T losses, give a
    scalar.

    Parameters
    ----------
    beta : level of the quantile, in [0, 1). Default 0.9: the worst tenth, the example of Meng & Gower.
    """

    def __init__(self, beta: OpenFraction = 0.9):
        super().__init__()
        self.beta = beta
        self.alpha = nn.Parameter(torch.zeros(()))

    def notices(self, run) -> list[str]:
        if self.beta == 0:
            return ["risk.beta=0: the worst of all losses are all of them, so that this is the mean"]
        return super().notices(run)

    def forward(self, losses: Tensor, batch: Batch) -> Tensor:
        return self.alpha + (weighted(losses, batch) - self.alpha).relu().mean() / (1 - self.beta)
