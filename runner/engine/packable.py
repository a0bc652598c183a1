"""Which runs may have others beside them, and how close they then come to runs alone."""

import torch
from torch import Tensor

from runner.core import distributed
from runner.engine.stacked import Unpackable
from runner.engine.trainer import Trainer
from runner.hook import Hook


def refuse(trainer: Trainer) -> None:
    """Raise Unpackable for a run that cannot have others beside it, whatever they are."""
    if distributed.world > 1:
        raise Unpackable("a run that several processes share")
    if not trainer.steps:
        raise Unpackable("nothing is trained")
    if trainer.precision.scale is not None:
        raise Unpackable("train.precision=fp16: every run has a loss scale and skipped steps of its own")
    if trainer.train.compile:
        raise Unpackable("train.compile=true")
    if trainer.train.patience is not None:
        raise Unpackable("train.patience: every run ends for itself")
    if trainer.kept:
        raise Unpackable("train.keep: weights are written on the way")
    if not isinstance(trainer.dataset.train.base, Tensor):
        raise Unpackable("a data set that is streamed")
    if not getattr(trainer.optimizer, "flat", False):
        raise Unpackable(f"{type(trainer.optimizer).__name__} does not say that it steps flat vectors")
    if trainer.estimate is not None:
        raise Unpackable(f"{type(trainer.estimate).__name__} makes the gradient of one run")
    if not trainer.sharpness.replicas:
        raise Unpackable(f"{type(trainer.sharpness).__name__} does not say that it works on replicas")
    if trainer.balance is not None and not trainer.balance.replicas:
        raise Unpackable(f"{type(trainer.balance).__name__} does not say that it works on replicas")
    if trainer.balance is not None and isinstance(trainer.balance, Hook):
        raise Unpackable(f"{type(trainer.balance).__name__} remembers what it has seen")


def tolerance(run: Trainer) -> float:
    """How far rounding may take the weights apart within a few steps, as a share of the way they went."""
    if run.precision.dtype == torch.bfloat16:
        return 0.2
    return 1e-6 if run.weights.data.dtype == torch.float64 else 0.01
