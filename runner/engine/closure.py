"""What a sharpness method and an optimizer call: passes over a batch, and the gradient that a step goes by."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from runner.core import distributed
from runner.core.batch import Batch, Output, Pass
from runner.core.precision import Overflow
from runner.core.weights import column
from runner.risk import attended

if TYPE_CHECKING:
    from runner.engine.trainer import Trainer


class Closure:
    """Passes over one batch for a sharpness method: see `runner.sharpness.Closure`.

    Every pass after the first draws the random numbers of the first, and leaves the statistics of normalisation layers
    alone, so that they see the batch once and at w; without `live` the first leaves them alone too. With `alone` the
    gradient is the mean over this batch on this device; otherwise it is this batch's part of the mean over the step's
    whole batch, summed over devices.

    Quantization that needs passes of its own may ask for more: guide is for `Batch.more`, of the samples of this pass,
    and live says whether normalisation layers take its statistics.
    """

    def __init__(self, run: "Trainer", batch: Batch, alone: bool, live: bool = True):
        self.run, self.batch, self.alone, self.live = run, batch, alone, live
        self.passes = 0
        self.begin: tuple | None = None  # where the first pass's random numbers began

    def __call__(
        self,
        mask: Tensor | None = None,
        create_graph: bool = False,
        below: float | Tensor | None = None,
        guide: Tensor | None = None,
        live: bool | None = None,
    ) -> Pass:
        run, weights, scale = self.run, self.run.weights, self.run.precision.scale
        batch = self.batch if mask is None else self.batch.select(mask)
        if below is not None:
            ones = weights.data.new_ones(batch.x.shape[: 1 + batch.lead])
            batch = batch.put(limit=ones * column(below, ones))
        if guide is not None:
            batch = batch.put(guide=guide)
        share = 1.0 if self.alone or not batch.total else len(self.batch) / batch.total
        outs, total, grad = [], None, None
        here = run.draws.where()
        if self.begin is None:
            self.begin = here
        else:
            run.draws.go(self.begin)
        with run.statistics(live=self.live and (self.passes == 0 if live is None else live)):
            for micro in batch.split(math.ceil(len(batch) / run.train.accumulate)):
                loss, out = run.objective(micro)
                run.masks.forwards += 1
                loss = self.part(loss, micro, share * len(micro) / len(batch))
                parts = self.backward(run.precision.up(loss), bool(outs), create_graph)
                if create_graph:
                    grad = weights.flatten(parts) + (0.0 if grad is None else grad)
                outs.append(out.detach())
                total = loss.detach() if total is None else loss.detach() + total
        if self.passes:
            run.draws.go(here)
        self.passes += 1
        filled = self.filled()
        if scale is not None:
            filled.mul_(1.0 / scale.value)
            grad = None if grad is None else grad / scale.value
        if not self.alone:
            distributed.sum_(filled)
        if scale is not None:
            finite = bool(torch.isfinite(filled).all())
            if distributed.any_of(not finite, filled.device):
                raise Overflow
        return Pass(self.finish(total), Output.cat(outs, batch.lead), grad)

    # ---- what `runner.engine.rows` does otherwise

    @staticmethod
    def minimised(run: "Trainer", seen, out: Output, batch: Batch) -> Tensor:
        """What is minimised on a (micro-)batch, a scalar. seen : what hooks may know of the run."""
        return run.hooks.loss(seen, out, batch, run.risk(attended(run.loss(out, batch), batch), batch))

    def part(self, loss: Tensor, micro: Batch, share: float) -> Tensor:
        """The micro-batch's part of the loss; share : of its samples among those of the step."""
        return loss * share if share != 1 else loss

    def backward(self, loss: Tensor, add: bool, create_graph: bool) -> Sequence[Tensor | None]:
        weights = self.run.weights
        parts = torch.autograd.grad(
            loss, weights.parameters, self.run.ones, create_graph=create_graph, allow_unused=True
        )
        weights.set_grad(parts, add=add)
        return parts

    def filled(self) -> Tensor:
        """What the backward passes fill and processes add up."""
        return self.run.weights.grad

    def finish(self, total: Tensor) -> Tensor:
        """The loss, of the sum of the micro-batches' parts."""
        return total


class Asked:
    """The closure of `optimizer.step`: fills the gradients and returns the loss at w, over all processes.

    LBFGS and its like call it several times a step. All calls are of one random function, with the memories of loss,
    risk and hooks as they were, and what they leave behind is what the first one does.
    """

    loss: Tensor | None = None  # of the first call, this process's part of it
    begin: tuple | None = None  # where its random numbers began

    def __init__(self, run: "Trainer", batch: Batch):
        self.run, self.batch = run, batch

    def __call__(self) -> Tensor:
        run, first = self.run, self.begin is None
        here = run.draws.where()
        if not first:
            run.draws.go(self.begin)
        if run.several:
            run.weights.attach()
        run.value = loss = run.gradient(self.batch, note=first)
        run.hooks.gradient(run, note=first)
        if first:
            self.begin, self.loss = here, loss
        else:
            run.draws.go(here)
        return distributed.sum_(loss.clone()) if run.several else loss
