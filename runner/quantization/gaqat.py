"""Gradient-adaptive quantization-aware training."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from runner.core import reach
from runner.core.batch import Pass
from runner.core.schema import Count, Fraction
from runner.core.weights import Weights, column
from runner.hook import Hook
from runner.quantization import Begin, opening
from runner.quantization.fake import Ends, now_quantized
from runner.quantization.lsq import LSQ
from runner.quantization.quantizer import Bits, Quantizer
from runner.sharpness import Closure, Sharpness
from runner.sharpness.none import Plain


class TwoGradients(Sharpness):
    """Mixed into the run's sharpness method: keeps the gradient of the first pass where there was a second."""

    task: Tensor | None = None

    def __call__(self, closure: Closure, weights: Weights) -> Pass:
        passes, kept = 0, None

        def watched(*args, **kwargs) -> Pass:
            nonlocal passes, kept
            found = closure(*args, **kwargs)
            passes += 1
            if passes == 1:
                kept = weights.grad.clone()
            return found

        self.task = None
        first = super().__call__(watched, weights)
        self.task = kept if passes > 1 else None
        return first


class GAQAT(LSQ, Hook):
    """GAQAT (Jiang et al., 2024, arXiv:2412.05551): learned step sizes (LSQ) under a sharpness-aware method, where the
    two gradients of a step size, of the loss at w (task) and of the perturbed loss (smooth), are treated apart.

        disorder of a step size: in how many of the last `period` updates its task gradient changed its sign, as a part
        disorder < threshold:  the task gradient is frozen for the next period, the step size gets the smooth one alone
        else:                  it gets the sum of both

    A task gradient that keeps its direction although the step size is trained is taken as held in balance by the other
    gradient. While it is frozen its signs are still counted, so that it can be released after the next period.

    No code is public. The paper's text could not be read in full; what is public of it, its abstract and the reviews
    of its submission to ICLR 2025, settles that disorder counts changes of sign between successive steps, that it is
    taken of the task gradient every K steps, and that below a threshold the task gradient is frozen (two reviewers
    say so and one quotes it; one says that the smooth one is). Not settled: the values of K and of the threshold, so
    that both defaults are guesses, whether a step size that is not frozen gets the sum (as in SAGM, which the paper
    builds on; so here) or the perturbed gradient alone, as weights do under SAM, and whether parts of the network are
    exempt. With one pass a step, sharpness=none, this is LSQ. In a federation signs, disorder and what is frozen are
    each client's own and go on over its rounds: a period is so many of the client's updates.

    Parameters
    ----------
    bits, inputs, ends, channels, begin, calibration : see `LSQ`.
    period : K. Default 100 updates.
    threshold : default 0.3; signs that are drawn at random have 0.5.

    Raises
    ------
    ValueError
        With a sharpness method whose `m` is set: it makes several perturbations a step.
    """

    replicas = True

    def __init__(
        self,
        bits: Bits = 4,
        inputs: Literal["same", "float"] | Bits = "same",
        ends: Ends = 8,
        channels: bool = False,
        period: Count = 100,
        threshold: Fraction = 0.3,
        begin: Begin = 0.0,
        calibration: Count = 128,
    ):
        super().__init__(bits, inputs, ends, channels, begin=begin, calibration=calibration)
        self.period, self.threshold = period, threshold

    def begins(self, steps: int, steps_per_epoch: int) -> Iterable[reach.Begin]:
        yield from super().begins(steps, steps_per_epoch)
        after = opening(self.begin, steps) + self.period
        yield reach.Begin(f"the end of period={self.period}", after, "no step size is frozen", own=True)

    def start(self, run) -> None:
        if run.sharpness.m is not None:
            raise ValueError("quantization=gaqat needs sharpness.m=null: one perturbation for a step")
        if isinstance(run.sharpness, Plain):
            run.notices.append("quantization=gaqat has one gradient with sharpness=none: it is quantization=lsq then")
        if not isinstance(run.sharpness, TwoGradients):  # a federation starts its hooks anew for every client
            kind = type(run.sharpness)
            run.sharpness.__class__ = type(kind.__name__, (TwoGradients, kind), {})
        scales = {id(module.scale) for module in run.model.modules() if isinstance(module, Quantizer)}
        places = [p for p, w in zip(run.weights.places, run.weights.parameters, strict=True) if id(w) in scales]
        where = [place.start + i for place in places for i in range(place.size.numel())]
        self.index = torch.tensor(where, device=run.device)
        zeros = torch.zeros(len(where), dtype=run.weights.data.dtype, device=run.device)
        self.sign, self.flips, self.frozen = zeros, zeros.clone(), zeros.clone()
        self.updates = 0

    def gradient(self, run) -> None:
        if run.sharpness.task is None or not now_quantized(run.model):
            return
        task, smooth = run.sharpness.task.gather(-1, self.index), run.weights.grad.gather(-1, self.index)
        run.weights.grad.scatter_(-1, self.index, smooth + (1 - self.frozen) * task)
        sign = task.sign()
        if self.updates:
            self.flips += sign != self.sign
        self.sign = sign
        self.updates += 1
        if self.updates % self.period == 0:
            self.frozen = (self.flips / self.period < column(self.threshold, self.flips)).to(task.dtype)
            self.flips = torch.zeros_like(self.flips)

    def state_dict(self) -> dict:
        return {name: getattr(self, name) for name in ("sign", "flips", "frozen", "updates")}

    def load_state_dict(self, state: dict) -> None:
        for name, value in state.items():
            setattr(self, name, value.to(self.index.device, copy=True) if isinstance(value, Tensor) else value)
