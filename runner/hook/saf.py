"""Sharpness-aware training for free: the trajectory loss against recorded outputs."""

from collections.abc import Iterable

import torch
from torch import Tensor

from runner.core import distributed
from runner.core.batch import Batch, Output
from runner.core.precision import wide
from runner.core.reach import Begin
from runner.core.schema import Count, Natural, NonNegative, Positive
from runner.hook import Hook


def trajectory(now: Tensor, past: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(softmax(past / T) || softmax(now / T)), (B,). Where `past` is not finite, 0."""
    now = wide(now)
    past = past.to(now.dtype).where(past.isfinite().all(-1, keepdim=True), now.detach())
    a, b = ((logits / temperature).log_softmax(-1) for logits in (past, now))
    return temperature**2 * (a.exp() * (a - b)).sum(-1)


def recorded(memory: Tensor, out: Output, batch: Batch) -> Tensor:
    """The rows (B, classes) of the batch's samples. Raises ValueError for logits of another shape."""
    if out.logits.shape[1:] != memory.shape[-1:]:
        raise ValueError(f"a trajectory loss needs logits (B, {memory.shape[-1]}), got {tuple(out.logits.shape)}")
    return memory[batch.index]


def no_logits(run, name: str) -> list[str]:
    """A line where the outputs are no logits: softmaxes of them are compared all the same. Raises ValueError where
    there are several rows of them."""
    if run.dataset.task == "tasks":
        raise ValueError(f"hook={name} remembers one row of logits a sample, and this data set has several tasks")
    if run.dataset.task != "regression":
        return []
    none = ", and of one output they are always equal: it changes nothing" if run.dataset.classes == 1 else ""
    return [f"hook={name} compares softmaxes of the outputs, which are no logits in a regression{none}"]


class SAF(Hook):
    """Stay near the outputs of some epochs ago, so that the loss has no sudden drops (Du et al., NeurIPS 2022,
    arXiv:2205.14083): a stand-in for sharpness at the price of a gather.

        L + coefficient * (1/B) sum_i T^2 * KL(softmax(z_i' / T) || softmax(z_i / T))      in epochs e > start

    z' are the logits recorded for the same sample in epoch e - lag, whatever its augmentation was, and epochs count
    from 0. It is a hook, as it needs no gradient of its own and adds to any loss and risk; the mean is a plain one.
    In its first start + 1 epochs L is untouched. A sample that was not recorded then (`train.drop_last`, a skipped
    step) is compared with what was recorded lag epochs before that, or left out.

    As in the authors' code (AngusDujw/SAF, SAF_train.py), but for its ring of lag + 1 epochs: lag are enough where
    one is read before it is written. The logits take lag * samples * classes numbers, also in the checkpoint; several
    processes exchange theirs every step.

    Parameters
    ----------
    coefficient : lambda. Default 0.3, the README's and its ImageNet command's; SAF_train.py has 0.16.
    temperature : T. Default 5.
    lag : epochs between the two outputs. Default 3; the ImageNet command has 2.
    start : the last epoch without the term. Default 5.

    Raises
    ------
    ValueError
        Logits that are not (B, classes).
    """

    replicas = True
    predictions = True

    def __init__(
        self,
        samples: int,
        classes: int,
        coefficient: NonNegative = 0.3,
        temperature: Positive = 5.0,
        lag: Count = 3,
        start: Natural = 5,
    ):
        self.coefficient, self.temperature, self.lag, self.after = coefficient, temperature, lag, start
        self.shape = (lag, samples, classes)

    def begins(self, steps: int, steps_per_epoch: int) -> Iterable[Begin]:
        key = f"lag={self.lag}" if self.lag > self.after + 1 else f"start={self.after}"
        after = max(self.lag, self.after + 1) * steps_per_epoch
        yield Begin(f"the first epoch with the term ({key})", after, "it changes nothing")

    def start(self, run) -> None:
        self.memory = torch.full(self.shape, torch.inf, dtype=run.weights.data.dtype, device=run.device)
        run.notices += no_logits(run, "saf")

    def loss(self, run, out: Output, batch: Batch) -> Tensor:
        epoch = run.count // run.steps_per_epoch
        term = trajectory(out.logits, recorded(self.memory[epoch % self.lag], out, batch), self.temperature)
        return (epoch > self.after) * self.coefficient * term.mean()

    def observe(self, run, out: Output, batch: Batch) -> None:
        slot = self.memory[run.count // run.steps_per_epoch % self.lag]
        for index, logits in distributed.all_of((batch.index, out.logits)):
            slot[index.to(slot.device)] = logits.to(slot)

    def state_dict(self) -> dict:
        return {"memory": self.memory}

    def load_state_dict(self, state: dict) -> None:
        self.memory.copy_(state["memory"])
