"""Mixed precision: which type the model runs in, and the loss scale that fp16 needs."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from runner.core.mistake import ConfigError


class Overflow(Exception):
    """A pass gave gradients that are not finite at the present loss scale: the step is to be skipped."""


class LossScale:
    """Dynamic loss scaling (Micikevicius et al., ICLR 2018, arXiv:1710.03740, section 3.2), with the constants of
    torch.amp.GradScaler: start at 2^16, halve on overflow, double after 2,000 steps without one.

    A plain object instead of GradScaler because a sharpness method makes several passes per step, and each of them is
    to be unscaled and checked (GradScaler allows one unscaling per optimizer step).
    """

    def __init__(self, value: float = 2.0**16, growth_interval: int = 2000):
        self.value = value
        self.growth_interval = growth_interval
        self.good_steps = 0
        self.skipped = 0

    def good(self) -> None:
        self.good_steps += 1
        if self.good_steps == self.growth_interval:
            self.value *= 2.0
            self.good_steps = 0

    def overflow(self) -> None:
        self.value *= 0.5
        self.good_steps = 0
        self.skipped += 1

    def state_dict(self) -> dict:
        return {"value": self.value, "good_steps": self.good_steps, "skipped": self.skipped}

    def load_state_dict(self, state: dict) -> None:
        self.value, self.good_steps, self.skipped = state["value"], state["good_steps"], state["skipped"]


class Precision:
    """`name` is what train.precision said; `dtype` what the model's matrix products and convolutions run in.

    Parameters stay in fp32 and losses are computed in fp32 whatever the precision.
    """

    def __init__(self, name: str, device: torch.device):
        if name == "auto":
            name = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
        if name == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
            raise ConfigError("train.precision=bf16: this GPU has no bf16; use fp16 or fp32")
        self.name = name
        self.device_type = device.type
        self.dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name]
        self.scale = LossScale() if name == "fp16" else None

    def autocast(self) -> AbstractContextManager:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device_type, dtype=self.dtype)

    def up(self, loss: Tensor) -> Tensor:
        return loss if self.scale is None else loss * self.scale.value


def wide(logits: Tensor) -> Tensor:
    """Logits in fp32, or in fp64 where they are: a half-precision softmax overflows (users.md row 38)."""
    return logits if logits.dtype == torch.float64 else logits.float()
