"""What the model gives on a whole split, and how right that is."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from runner.core import distributed
from runner.core.batch import Batch
from runner.core.measure import measures
from runner.core.places import Sums
from runner.dataset import Split

if TYPE_CHECKING:
    from runner.engine.trainer import Trainer


def outputs(run: "Trainer", split: Split, model: nn.Module | None, of: str) -> Iterator[tuple[Tensor, Batch]]:
    """Logits, or features, in fp32, batch by batch, of this process's share."""
    forward = model or run.forward
    run.model.eval()
    for batch in run.loader.evaluate(split, run.train.eval_batch_size):
        with run.precision.autocast():
            out = forward(batch.x)
        yield getattr(run.loss.head(out), of).float(), batch
    run.model.train()


def predicted(run: "Trainer", split: Split, model: nn.Module | None, of: str) -> tuple[Tensor, Tensor]:
    """All of them, and the targets, in the order of the split and in every process."""
    made = [(values, batch.y) for values, batch in outputs(run, split, model, of)]
    logits, targets = (torch.cat(parts) for parts in zip(*made, strict=True))
    if distributed.world > 1:
        parts = distributed.all_of((logits.cpu(), targets.cpu()))
        logits, targets = (torch.cat(part) for part in zip(*parts, strict=True))
    return logits, targets


@torch.no_grad()
def scored(run: "Trainer", split: Split, model: nn.Module | None = None) -> dict[str, float | None]:
    """How right the predictions on a split are."""
    data = run.dataset
    if not data.places:
        return measures(*predicted(run, split, model, "logits"), data.task, run.loss, data.tasks)
    sums = Sums(data.classes, run.loss, overlap=data.vocabulary is None)
    for logits, batch in outputs(run, split, model, "logits"):
        sums.add(logits, batch.y, batch.more.get("valid"))
    return sums.result(data.first)
