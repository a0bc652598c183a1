"""Memory-efficient sharpness-aware training: the trajectory loss against a moving average of the weights."""

from collections.abc import Iterable

import torch
from torch import Tensor

from runner.core.batch import Batch, Output
from runner.core.reach import Begin
from runner.core.schema import Natural, NonNegative, OpenFraction, Positive
from runner.hook import Hook
from runner.hook.ema import EMA
from runner.hook.saf import no_logits, recorded, trajectory


class MESA(EMA):
    """SAF without its memory of outputs (Du et al., NeurIPS 2022, arXiv:2205.14083): the past outputs are those of an
    average of the weights on the same batch, one forward pass more.

        L + coefficient * (1/B) sum_i T^2 * KL(softmax(z_i' / T) || softmax(z_i / T))      in epochs e > start
        z' = the logits at a,   a = decay * a + (1 - decay) * w after every update, a = w at first

    As in the authors' code (AngusDujw/SAF, MESA_train.py, with timm's ModelEmaV2): the average begins with training,
    has no ramp, includes the buffers (BatchNorm statistics), and is used in evaluation mode; epochs count from 0.
    What is evaluated and saved as best are the weights themselves; with hook=[mesa,ema] an average.

    Parameters
    ----------
    coefficient : lambda. Default 0.8, the README's and its ImageNet command's; MESA_train.py has 0.3.
    temperature : T. Default 5.
    decay : default 0.9998, over ImageNet's steps; a short run needs a smaller one.
    start : the last epoch without the term. Default 5.

    Raises
    ------
    ValueError
        Logits that are not (B, classes).
    """

    replicas = True
    predictions = True
    teacher, weights = EMA.weights, Hook.weights

    places = False

    def __init__(
        self,
        samples: int,
        classes: int,
        coefficient: NonNegative = 0.8,
        temperature: Positive = 5.0,
        decay: OpenFraction = 0.9998,
        start: Natural = 5,
    ):
        super().__init__(decay, warm=False)
        self.coefficient, self.temperature, self.after = coefficient, temperature, start
        self.shape = (samples, classes)

    def begins(self, steps: int, steps_per_epoch: int) -> Iterable[Begin]:
        after = (self.after + 1) * steps_per_epoch
        yield Begin(f"the first epoch with the term (start={self.after})", after, "it changes nothing")
        yield from super().begins(steps, steps_per_epoch)

    def start(self, run) -> None:
        super().start(run)
        self.past = torch.full(self.shape, torch.inf, dtype=run.weights.data.dtype, device=run.device)
        run.notices += no_logits(run, "mesa")

    @torch.no_grad()
    def batch(self, run, batch: Batch) -> Batch:
        if run.count // run.steps_per_epoch > self.after:
            run.model.eval()
            with self.teacher(run):
                logits = run.outputs(batch.x).logits
            run.model.train()
            self.past[batch.index] = logits.to(self.past)
        return batch

    def loss(self, run, out: Output, batch: Batch) -> Tensor:
        active = run.count // run.steps_per_epoch > self.after
        term = trajectory(out.logits, recorded(self.past, out, batch), self.temperature)
        return active * self.coefficient * term.mean()
