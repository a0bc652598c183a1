"""When a run ends before its last step (`train.patience`), and which weights are kept on the way (`train.keep`)."""

import math
from typing import TYPE_CHECKING

import torch

from runner.core import checkpoint, distributed
from runner.core.mistake import ConfigError

if TYPE_CHECKING:
    from runner.engine.trainer import Trainer


def check(run: "Trainer") -> None:
    """Raise ConfigError where there is nothing to be patient about, or no such measure to choose the best epoch by."""
    train, data = run.train, run.dataset
    if train.patience is not None and data.val is None:
        raise ConfigError(f"train.patience={train.patience}: it goes by validation, and dataset.val is 0")
    if train.best_by is None:
        return
    split = data.val or data.test
    if split is None:
        raise ConfigError(f"train.best_by={train.best_by}: neither validation nor test is measured")
    there = run.evaluate(split.select(torch.arange(min(len(split), 64))))
    run.model.train()
    if train.best_by not in there:
        raise ConfigError(f"train.best_by={train.best_by}: a split's measures are {', '.join(there)}")
    if there[train.best_by] is None:
        raise ConfigError(f"train.best_by={train.best_by}: this loss does not define it")


def stalled(run: "Trainer") -> bool:
    """Whether so many evaluations in a row have found nothing better: a function of what a checkpoint holds."""
    best, patience = run.best.get("val"), run.train.patience
    if patience is None or best is None:
        return False
    return math.ceil(run.count / run.steps_per_epoch) - best["epoch"] >= patience * run.train.eval_every


def end(run: "Trainer") -> None:
    """No step comes after the present one."""
    took, of = (math.ceil(count / run.steps_per_epoch) for count in (run.count, run.steps))
    best = run.best["val"]["epoch"]
    run.notices.append(
        f"train.patience={run.train.patience}: best on validation in {run.unit} {best}, ended after {took} of {of}"
    )
    if run.steps in run.kept:
        keep(run)
    run.steps = run.count
    run.tell(f"note    {run.notices[-1]}")


def kept(wanted: str | int | list[int], steps: int) -> frozenset[int]:
    """The steps after which weights are kept. ends: 0 and the last; log: also 1, 2, 4, 8, ...; a number: so many,
    evenly spaced, with both ends; a list: these. Raises ConfigError where the run does not come to one."""
    if wanted == "none" or not steps:
        return frozenset()
    if isinstance(wanted, list):
        if late := [step for step in wanted if step > steps]:
            raise ConfigError(f"train.keep={wanted}: a run of {steps:,} steps does not come to {late[0]:,}")
        return frozenset(wanted)
    if wanted == "log":
        return frozenset({0, steps, *(2**i for i in range(steps.bit_length()) if 2**i <= steps)})
    count = 2 if wanted == "ends" else wanted
    return frozenset({steps} if count == 1 else {round(steps * i / (count - 1)) for i in range(count)})


def keep(run: "Trainer") -> None:
    """step_<count>.pt: the weights as evaluation sees them, which `checkpoint=` takes."""
    shown = run.shown()
    if distributed.rank == 0:
        facts = {"format": checkpoint.FORMAT, "made": run.made, "step": run.count}
        checkpoint.save(facts | shown, run.folder / f"step_{run.count}.pt")
