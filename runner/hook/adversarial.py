"""Adversarial training: inputs at which the loss is worse."""

from dataclasses import replace
from math import ceil

import torch
from torch import Tensor

from runner.core import keyed
from runner.core.batch import Batch
from runner.core.schema import Count, NonNegative, OpenFraction, Positive
from runner.hook import Hook
from runner.loss import Loss
from runner.risk import Risk


class Adversarial(Hook):
    """Train at inputs moved against the loss, at most epsilon in every coordinate: FGSM (Goodfellow et al., ICLR 2015,
    arXiv:1412.6572, sections 4 and 6) and PGD (Madry et al., ICLR 2018, arXiv:1706.06083).

        x_0 = x, or uniform in the box |x_0 - x| <= epsilon where `random`
        x_{t+1} = clip of x_t + step * sign(grad_x l(x_t, y))  to the box and to the data's range,   `steps` times
        objective: clean * risk(x) + (1 - clean) * risk(x_steps)

    FGSM is one step of length epsilon from x, and the paper trains with clean = 0.5; PGD takes more steps from a random
    point and trains on nothing else. Lengths are shares of the range of the raw inputs, whatever their normalisation:
    0.25 for MNIST and 8/255 for CIFAR are those of the two papers. The data set declares its range.

    The attack is on the run's own loss at w, without risk and penalties, in training mode as in the authors' PGD code;
    running statistics do not see it, and its dropout mask is that of the pass to come where that has the same samples
    (without clean and train.accumulate). It is made once a step: every pass of a sharpness method sees the same inputs.
    Its random starts are keyed by epoch and sample. With clean the batch has both halves, each sample twice, weighted
    by 2 * clean and 2 * (1 - clean), which the mean as the risk makes the mixture. What remembers samples then sees
    both, and one of them stays: a run says so. Training loss and accuracy are those of these inputs, evaluation is on
    clean ones.

    Parameters
    ----------
    epsilon : largest move, as a share of the range. Default 0.25, FGSM's for MNIST.
    step : length of a step, in the same units. Default 0.25.
    steps : default 1.
    random : start at a random point. Default false.
    clean : share of the clean inputs' loss, in [0, 1); null: they are left out. Default 0.5.
    bounds : the range, from the data set.

    Raises
    ------
    ValueError
        The data set has no range.
    """

    def __init__(
        self,
        epsilon: NonNegative = 0.25,
        step: Positive = 0.25,
        steps: Count = 1,
        random: bool = False,
        clean: OpenFraction | None = 0.5,
        *,
        bounds: tuple[float, float] | None,
    ):
        self.epsilon, self.step_size, self.steps, self.random, self.clean = epsilon, step, steps, random, clean
        self.bounds = declared(bounds)

    def start(self, run) -> None:
        reach = self.steps * self.step_size
        if not self.random and reach < self.epsilon:
            run.notices.append(
                f"the moves of adversarial inputs are at most {reach:g} of the range (steps={self.steps} of "
                f"step={self.step_size:g}), so that epsilon={self.epsilon:g} changes nothing"
            )
        parts = {type(run.loss).__name__: (run.loss, Loss), type(run.risk).__name__: (run.risk, Risk)}
        parts |= {f"hook={name}": (hook, Hook) for name, hook in run.hooks.named.items()}
        keep = [name for name, (part, base) in parts.items() if type(part).observe is not base.observe]
        if self.clean is not None and keep:
            run.notices.append(
                f"a batch has every sample twice, as it is and moved: what {' and '.join(keep)} remembers of a sample "
                "is of either"
            )

    def batch(self, run, batch: Batch) -> Batch:
        parts = batch.split(ceil(len(batch) / run.train.accumulate))
        moved = torch.cat([self.attack(run, part) for part in parts])
        if self.clean is None:
            return replace(batch, x=moved)
        weight = batch.x.new_ones(len(batch)) if batch.weight is None else batch.weight
        weight = torch.cat([2 * self.clean * weight, 2 * (1 - self.clean) * weight])
        both = batch.each(lambda values: torch.cat([values, values]), total=2 * batch.total)
        return replace(both, x=torch.cat([batch.x, moved]), weight=weight)

    def attack(self, run, batch: Batch) -> Tensor:
        """The batch's inputs, moved."""

        def loss(moved: Tensor) -> Tensor:
            at = replace(batch, x=moved)
            return run.loss(run.loss.ask(run.outputs, at), at).sum()

        box = (self.epsilon, *self.bounds)
        return ascend(run, batch, loss, box, self.step_size, self.steps, self.random)


def declared(bounds: tuple[float, float] | None) -> tuple[float, float]:
    """The range of the raw inputs. Raises ValueError where the data set declares none."""
    if bounds is None:
        raise ValueError(
            "it moves inputs by shares of their range, and this data set declares none, as tables have none; a data "
            "set of your own declares one with `bounds = (low, high)` in its class"
        )
    return bounds


def ascend(run, batch: Batch, objective, box: tuple, step: float, steps: int, random: bool) -> Tensor:
    """The batch's inputs after `steps` moves along the sign of the gradient of objective(inputs), a scalar.

    box : (epsilon, low, high) and `step` as in `Adversarial`. random : start at a random point of the box.
    """
    loader, x, (epsilon, low, high) = run.loader, batch.x, box
    low, high = ((edge - loader.mean) * loader.scale for edge in (low, high))
    unit = high - low  # of the normalised inputs, by channel
    floor, ceiling = torch.maximum(x - epsilon * unit, low), torch.minimum(x + epsilon * unit, high)
    moved = x
    if random:
        epoch = run.count // run.steps_per_epoch
        draw = keyed.uniform(loader.seed, "adversarial", epoch, batch.index, x[0].numel()).view_as(x)
        moved = x + epsilon * unit * (2 * draw.to(x) - 1)
    for _ in range(steps):
        moved = moved.clamp(floor, ceiling).detach().requires_grad_()
        with run.statistics(live=False):
            (gradient,) = torch.autograd.grad(run.precision.up(objective(moved)), moved)
        moved = moved + step * unit * gradient.sign().nan_to_num()  # fp16 may overflow
    return moved.detach().clamp(floor, ceiling).to(x.dtype)
