"""The penalty on the log-partition function of the logits, called z-loss in language models."""

from torch import Tensor

from runner.core.batch import Batch, Output
from runner.core.precision import wide
from runner.core.schema import NonNegative
from runner.hook import Hook


class LogitZ(Hook):
    """Keep the softmax normaliser Z near 1 (Chowdhery et al., PaLM, JMLR 2023, arXiv:2204.02311, section 5).

        penalty = coefficient * mean (log Z)^2,   Z = sum_c exp z_c,   the mean over samples

    Shifting all logits of a sample does not change its softmax but is what this penalises, so that they stay where half
    precision can hold them. It is not the loss of the same name on standardised logits, loss=z_loss_spherical. The mean
    is a plain one: it knows neither the risk's weights nor those of samples.

    Parameters
    ----------
    coefficient : default 1e-4, PaLM's.
    """

    replicas = True
    predictions = True

    def __init__(self, coefficient: NonNegative = 1e-4):
        self.coefficient = coefficient

    def start(self, run) -> None:
        if run.dataset.task == "regression":
            run.notices.append("hook=logit_z draws the outputs of a regression to zero: they are no logits")

    def loss(self, run, out: Output, batch: Batch) -> Tensor:
        return self.coefficient * wide(out.logits).logsumexp(-1).square().mean()
