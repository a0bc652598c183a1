"""What a sharpness method and an optimizer call: passes over a batch, and the gradient that a step goes by."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import compress
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from runner.core import distributed
from runner.core.batch import Batch, Output, Pass
from runner.core.precision import Overflow
from runner.core.weights import column
from runner.engine import diagnose
from runner.risk import attended, units

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
        share = 1.0 if self.alone else run.units(self.batch) / run.whole(self.batch)
        outs, total, grad = [], None, None
        here = run.draws.where()
        if self.begin is None:
            self.begin = here
        else:
            run.draws.go(self.begin)
        with run.statistics(live=self.live and (self.passes == 0 if live is None else live)):
            for micro in batch.split(math.ceil(len(batch) / run.train.accumulate)):
                part = share * run.units(micro) / run.units(batch)
                loss, out, parts = self.one(micro, part, bool(outs), create_graph)
                if create_graph:
                    grad = weights.flatten(parts) + (0.0 if grad is None else grad)
                outs.append(out)
                total = loss if total is None else loss + total
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

    @torch.no_grad()
    def value(self) -> Tensor:
        """The loss alone, (), or (K,): what the first pass would return; on several processes this one's part."""
        run, batch, total = self.run, self.batch, None
        share = 1.0 if self.alone else run.units(batch) / run.whole(batch)
        with run.statistics(live=False):
            for micro in batch.split(math.ceil(len(batch) / run.train.accumulate)):
                loss = self.part(run.objective(micro)[0], micro, share * run.units(micro) / run.units(batch))
                run.masks.forwards += 1
                total = loss if total is None else loss + total
        return total

    # ---- what `runner.engine.rows` and `runner.engine.estimated` do otherwise

    def one(self, micro: Batch, share: float, add: bool, create_graph: bool) -> tuple[Tensor, Output, Sequence]:
        """Add the micro-batch's part to the gradient; returns its part of the loss, the output, and that gradient."""
        run = self.run
        loss, out = run.objective(micro)
        run.masks.forwards += 1
        loss = self.part(loss, micro, share)
        parts = self.backward(run.precision.up(loss), add, create_graph)
        return loss.detach(), out.detach(), parts

    @staticmethod
    def minimised(run: "Trainer", seen, out: Output, batch: Batch) -> Tensor:
        """What is minimised on a (micro-)batch, a scalar. seen : what hooks may know of the run."""
        risk = run.risk(*units(attended(run.loss(out, batch), batch), batch, run.dataset))
        return run.hooks.loss(seen, out, batch, risk)

    def part(self, loss: Tensor, micro: Batch, share: float | Tensor) -> Tensor:
        """The micro-batch's part of the loss; share : of what it counts for in the step, see `Trainer.units`."""
        if isinstance(share, Tensor):
            return loss * share.to(loss.dtype)
        return loss * share if share != 1 else loss

    def backward(self, loss: Tensor, add: bool, create_graph: bool) -> Sequence[Tensor | None]:
        weights = self.run.weights
        active = weights.active if weights.idle else None  # of the others nothing is asked
        wanted = weights.parameters if active is None else list(compress(weights.parameters, active))
        parts = torch.autograd.grad(loss, wanted, self.run.ones, create_graph=create_graph, allow_unused=True)
        if active is not None:
            found = iter(parts)
            parts = [next(found) if steps else None for steps in active]
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
    risk and hooks as they were, and what they leave behind is what the first one does. So it is with what optimizers
    that look (`runner.optim`) ask for: `value` and `hvp` are of the function that the step's gradient is of, at the
    weights as they are when it is asked for, without the sharpness method.
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
        if run.several or run.weights.idle:
            run.weights.attach()
        run.value = loss = run.gradient(self.batch, note=first)
        run.hooks.gradient(run, note=first)
        if first:
            self.begin, self.loss = here, loss
        else:
            run.draws.go(here)
        return distributed.sum_(loss.clone()) if run.several else loss

    @contextmanager
    def once_more(self) -> Iterator[Closure]:
        """A closure of the same function; it leaves no trace."""
        run, here = self.run, self.run.draws.where()
        if self.begin is not None:
            run.draws.go(self.begin)
        gradient = run.weights.grad.clone()
        try:
            yield run.closure(run, self.batch, alone=False, live=False)
        finally:
            run.weights.grad.copy_(gradient)
            run.draws.go(here)

    def value(self) -> Tensor:
        """The loss at the present weights, () or (K,), over all processes: a forward pass."""
        with self.once_more() as closure:
            return distributed.sum_(closure.value())

    def hvp(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """The Hessian of the loss at the present weights times a vector, over all processes; both as the optimizer's
        parameters are, one for each. Costs about three gradients. Layers without a second derivative, such as a
        quantizer's rounding, count as what their backward pass says. Raises ConfigError with a balance or an estimated
        gradient."""
        run, weights = self.run, self.run.weights
        flat = getattr(run.optimizer, "flat", False)
        vector = torch.cat(list(vectors), -1) if flat else weights.flatten(vectors)
        with self.once_more() as closure, torch.enable_grad():
            grad = closure(create_graph=True).grad
            ones = None if grad.dim() == 1 else torch.ones_like(grad[:, 0])
            parts = torch.autograd.grad((grad * vector).sum(-1), weights.parameters, ones, allow_unused=True)
            product = distributed.sum_(weights.flatten(parts).detach())
        if run.precision.scale is not None and not torch.isfinite(product).all():
            raise Overflow
        return weights.cut(product) if flat else [view for _, view in weights.views(product)]


@contextmanager
def wholly(run: "Trainer", batch: Batch) -> Iterator[None]:
    """A step that is made wholly or not at all: an Overflow passes on, and weights and statistics are as before it.

    Raises NonFinite where no loss scale would help.
    """
    scale = run.precision.scale
    if scale is None:
        yield
        return
    kept = [buffer.clone() for buffer in run.model.buffers()]
    start = run.weights.clone() if run.several else None
    try:
        yield
    except Overflow:  # the weights are back at w and no memory was touched; nor may the statistics be
        for buffer, value in zip(run.model.buffers(), kept, strict=True):
            buffer.copy_(value)
        if start is not None:  # it may have moved them before it asked for the gradient that overflowed
            run.weights.copy_(start)
        run.unnoted = []
        scale.overflow()
        if scale.value < 1:
            raise diagnose.NonFinite(diagnose.explain(run, batch)) from None
        raise
    scale.good()
