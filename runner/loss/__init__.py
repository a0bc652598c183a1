"""Losses: per-sample values of the model's output against the targets."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from runner.core import distributed
from runner.core.batch import Batch, Output
from runner.core.precision import wide
from runner.core.reach import Begin

if TYPE_CHECKING:
    from runner.augment import Draw
    from runner.dataset import Split


class Loss(nn.Module):
    """Base of every loss: (B,) per-sample values, no reduction, no side effect, computed in fp32 or better.

    The last axis of the logits is classes and the rest broadcasts, so (B, T, C) gives (B, T). Parameters of a loss
    (margins, heads, link functions) are trained with the model's; buffers are saved in the checkpoint.
    `tasks` says which kinds of targets the loss is defined for (see `runner.dataset.Dataset.task`).
    A constructor may ask by name for what the data set knows, `classes`, `samples`, `class_counts`, `bag` (samples
    of a bag of labels), and for `features`, the D of the model's output.

    Attributes
    ----------
    padding : bool
        Whether the samples for which `batch.mask`, where set, is False leave the losses of the others alone. Default
        True, as a loss is per sample. False for one that makes something of the whole batch: clients of a federation
        whose batches are not all full are trained one after another then.
    probabilities : bool
        Whether the loss defines probabilities of the classes: those of the softmax (for several labels the sigmoid) of
        `log_probabilities`. Default True. False for a loss of scores, and where the label's own score has a margin in
        training that nothing has in evaluation: a run then has no NLL, Brier score or calibration error.
    alike : bool
        Whether all samples of a batch have one loss, that of the batch. Default False.
    predicts : bool
        Whether the logits are predictions of the targets. Default True. False: nothing of a run looks at how right they
        are, `evaluate` says what is measured instead, and its first measure chooses the best epoch.
    views : tuple of str
        What further versions of every sample it wants, each augmented for itself: `batch.more[name]` has its inputs,
        and of the output `more["name.logits"]`, `more["name.features"]` and so on are the model's, of one forward pass
        over all versions, so that batch normalisation sees them together. Default: none.
    needs : tuple of str
        Keywords, beside the inputs, that `ask` calls the model with. Default: none.
    turns : dict
        Players, each "model" or an attribute that is a module of the loss's, with the steps that they take in turn:
        {"critic": 5, "model": 1}. Together they have all that is trained; where one steps, the others' weights and what
        optimizers remember of them stay as they are. `turn` is whose step it is. Default: none, one player.
    """

    tasks: tuple[str, ...] = ("classes",)
    padding: bool = True
    probabilities: bool = True
    alike: bool = False
    predicts: bool = True
    views: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    turns: dict[str, int] = {}  # noqa: RUF012 (only read)
    turn: str = "model"

    def begins(self, steps: int, steps_per_epoch: int) -> Iterable[Begin]:
        """What of it waits for a step, in a run of so many: see `runner.core.reach`."""
        return ()

    def head(self, out: Output) -> Output:
        """The output that training and evaluation go on with, in place of the model's: for a loss that makes the logits
        itself, from the features or from the model's logits, with weights of its own. Default: the model's output.
        """
        return out

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """Of the head's logits (..., C) that of which the softmax are the probabilities that the loss defines; these
        have the order of the logits. Default: the logits.
        """
        return logits

    def moments(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """Of the head's outputs (..., C) for regression targets the mean, by whose errors a run is measured, and the
        variance of the normal distribution that the loss defines, None where it defines none. Default: the outputs.
        """
        return logits, None

    def draw(self, batch: Batch, draw: "Draw") -> Batch:
        """The batch with the random numbers that the loss needs of it put into `more`: noise, times. It is the last
        thing that is done to a batch, once a step, so that all passes and parts of the step see the same."""
        return batch

    def ask(self, net: Callable[..., Output], batch: Batch) -> Output:
        """The output of a pass: `net` is the model and `head`, called with inputs and, by keyword, what else the model
        takes, as often as wanted. Default: of the inputs, and of `views`."""
        if not self.views:
            return net(batch.x)
        first, *others = parted(net(torch.cat([batch.x, *(batch.more[name] for name in self.views)])), len(batch))
        for name, out in zip(self.views, others, strict=True):
            own = {"logits": out.logits, "features": out.features, **out.more}
            first.more |= {f"{name}.{key}": value for key, value in own.items()}
        return first

    def forward(self, out: Output, batch: Batch) -> Tensor:
        raise NotImplementedError

    def evaluate(self, run, split: "Split") -> dict[str, float | None]:
        """What is measured of the model on a split, the same at any time; run: the Trainer, whose weights are those to
        be measured. Default: how right the predictions are."""
        return run.scored(split)

    def sample(self, net: Callable[..., Output], like: Batch, draw: "Draw") -> Tensor | None:
        """New inputs, as many and of the shape as in `like`, of a loss that learns to make them: they are shown in
        samples.png at the end. Default: None."""
        return None

    def project(self) -> None:
        """After a step of `turn`'s: its weights back to where they are allowed to be."""

    def notices(self, run) -> list[str]:
        """What of it has no effect, or another one than expected, in this run, one line each; run: the Trainer."""
        return []

    def observe(self, out: Output, batch: Batch) -> None:
        """Called once a step with the detached pass measured at w, and not when the step was skipped."""


def parted(out: Output, size: int) -> list[Output]:
    """Consecutive parts of so many samples, of which `more` is each one's own."""
    return [out.each(lambda value, k=k: value[k : k + size]) for k in range(0, len(out.logits), size)]


def counts(class_counts: list[int] | None, who: str) -> Tensor:
    """Training samples of each class, (C,) int64; a class without any counts as one with one. ValueError where the
    targets are not class ids."""
    if class_counts is None:
        raise ValueError(f"{who} needs class counts, and the targets of this data set are not class ids")
    return torch.as_tensor(class_counts).clamp(min=1)


def soft_targets(y: Tensor, logits: Tensor) -> Tensor:
    """Targets as probabilities (..., C): class ids become one-hot, soft targets pass through."""
    if y.dim() == logits.dim():
        return y.to(logits.dtype)
    return torch.zeros_like(logits).scatter(-1, y.unsqueeze(-1), 1.0)


def errors(outputs: Tensor, y: Tensor) -> Tensor:
    """y - outputs in fp32 or better, (..., C), for regression targets (..., C), or (...) where C is 1.

    ValueError where there is not one output for every target.
    """
    outputs = wide(outputs)
    y = y.to(outputs.dtype)
    y = y.unsqueeze(-1) if y.dim() < outputs.dim() else y
    if y.shape != outputs.shape:
        raise ValueError(f"{outputs.shape[-1]} outputs a sample for {y.shape[-1]} targets")
    return y - outputs


def log_rest(logits: Tensor) -> Tensor:
    """log sum_{k != c} exp z_k for every class c, (..., C), C at least 2.

    The loss of a sample that is almost right is a small difference of this and z_c, which log_softmax rounds away.
    """
    top = soft_targets(logits.argmax(-1), logits) > 0
    p = torch.softmax(logits, -1).masked_fill(top, 0.0)  # of the others it is at most 1/2
    below = logits.masked_fill(top, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.where(top, below, logits.logsumexp(-1, keepdim=True) + torch.log1p(-p))


def remember(memory: Tensor, index: Tensor, rows: Tensor) -> None:
    """memory[index] = rows, in place, for the samples of every process: what a loss's `observe` does to its memory."""
    if distributed.world == 1:
        memory[index] = rows.to(memory.dtype)
    else:
        for where, what in distributed.all_of((index.cpu(), rows.cpu())):
            memory[where.to(memory.device)] = what.to(memory)
