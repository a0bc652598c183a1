"""Exponential moving average of the weights."""

import math
from collections.abc import Iterable
from contextlib import contextmanager
from typing import Literal

import torch

from runner.core.reach import Begin
from runner.core.schema import OpenFraction
from runner.core.weights import column
from runner.hook import Hook


class EMA(Hook):
    """Evaluate an average of the weights over training (Polyak & Juditsky 1992; in this form Tarvainen & Valpola 2017).

        a = d * a + (1 - d) * w   after every update,   a = w before the first

        warm=true          d = min(decay, (1 + t) / (10 + t)),   t updates before: that of TensorFlow's
                           tf.train.ExponentialMovingAverage with num_updates
        warm=mean_teacher  d = min(decay, 1 - 1 / (t + 1)),   t updates with this one: that of the code of Tarvainen &
                           Valpola (CuriousAI/mean-teacher), with which a is the plain mean of all weights so far, those
                           before the first update included, until decay is the smaller of the two
        warm=false         d = decay

    A ramp keeps the initial weights from dominating short runs. The floating-point buffers (BatchNorm statistics) are
    averaged in the same way, as timm's ModelEma does; the teacher of Tarvainen & Valpola has those of its own passes.

    Parameters
    ----------
    decay : default 0.999.
    warm : the ramp; see above. Default true.
    """

    replicas = True

    def __init__(self, decay: OpenFraction = 0.999, warm: bool | Literal["mean_teacher"] = True):
        self.decay = decay
        self.warm = warm
        self.updates = 0

    def begins(self, steps: int, steps_per_epoch: int) -> Iterable[Begin]:
        if self.warm is False and self.decay > 0:
            half = math.ceil(math.log(0.5) / math.log(self.decay))
            what = f"half of the average at decay={self.decay:g}"
            yield Begin(what, half, "the average is for the most part the weights before the first step")

    def start(self, run) -> None:
        self.average = run.weights.clone()
        self.buffers = [buffer.clone() for buffer in run.buffers]

    def step(self, run) -> None:
        decay = self.decay
        if self.warm:
            ramp = (1 + self.updates) / ((2 if self.warm == "mean_teacher" else 10) + self.updates)
            decay = decay.clamp(max=ramp) if isinstance(decay, torch.Tensor) else min(decay, ramp)
        self.updates += 1
        self.average.lerp_(run.weights.data, column(1 - decay, self.average))
        for mean, live in zip(self.buffers, run.buffers, strict=True):
            mean.lerp_(live, column(1 - decay, mean))

    @contextmanager
    def weights(self, run):
        live = run.buffers
        saved = [buffer.clone() for buffer in live]
        with run.weights.restored():
            run.weights.copy_(self.average)
            for buffer, mean in zip(live, self.buffers, strict=True):
                buffer.copy_(mean)
            try:
                yield
            finally:
                for buffer, value in zip(live, saved, strict=True):
                    buffer.copy_(value)

    def state_dict(self) -> dict:
        return {"updates": self.updates, "average": self.average, "buffers": self.buffers}

    def load_state_dict(self, state: dict) -> None:
        self.updates = state["updates"]
        self.average.copy_(state["average"])
        for buffer, value in zip(self.buffers, state["buffers"], strict=True):
            buffer.copy_(value)
