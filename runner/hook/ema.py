"""Exponential moving average of the weights."""

from contextlib import contextmanager

import torch

from runner.hook import Hook
from runner.schema import OpenFraction


class EMA(Hook):
    """Evaluate an average of the weights over training (Polyak & Juditsky 1992; in this form Tarvainen & Valpola 2017).

        a = d * a + (1 - d) * w   after every update,   d = min(decay, (1 + t) / (10 + t)),  t = updates so far

    The floating-point buffers (BatchNorm statistics) are averaged in the same way, as timm's ModelEma does. With
    `warm` false, d = decay from the first update on.

    Parameters
    ----------
    decay : default 0.999.
    warm : ramp the decay up so that short runs are not dominated by the initial weights. Default true.
    """

    def __init__(self, decay: OpenFraction = 0.999, warm: bool = True):
        self.decay = decay
        self.warm = warm
        self.updates = 0

    def start(self, run) -> None:
        self.average = run.weights.clone()
        self.buffers = [buffer.clone() for buffer in self._live(run)]

    @staticmethod
    def _live(run) -> list[torch.Tensor]:
        return [buffer for buffer in run.model.buffers() if buffer.is_floating_point()]

    def step(self, run) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warm else self.decay
        self.updates += 1
        self.average.lerp_(run.weights.data, 1 - decay)
        for mean, live in zip(self.buffers, self._live(run), strict=True):
            mean.lerp_(live, 1 - decay)

    @contextmanager
    def weights(self, run):
        live = self._live(run)
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
