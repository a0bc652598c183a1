"""What is measured once, when training is over: class by class, and after temperature scaling."""

from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from runner.augment import Draw
from runner.core import checkpoint, distributed
from runner.core.measure import (
    OF_PROBABILITIES,
    binned,
    class_accuracy,
    confusion,
    equal_width,
    group_accuracy,
    measures,
    scores,
    temperature,
)
from runner.engine.trainer import Trainer
from runner.loss import Loss

NAMES = ["temperature", *(f"test_{group}_accuracy" for group in ("many", "medium", "few"))]
NAMES += [f"test_scaled_{key}" for key in OF_PROBABILITIES]


@dataclass
class Final:
    """Of one set of weights.

    measures : some of NAMES. `test_many_accuracy` and so on as of `runner.core.measure.group_accuracy`; where there is
        a validation split, `temperature` as fitted there (to its labels, noisy ones where it has them), and
        `test_scaled_nll` and so on with it; of scores too, whose softmax means nothing before.
    by_class : (C,) the accuracy on the test samples of each class, nan where there are none.
    confused : (C, C) how many test samples of each class, a row, were taken for each, a column.
    bins : (3, M) as of `runner.core.measure.binned`, on the test split, None where the loss defines no probabilities;
        `scaled` after temperature scaling.
    """

    measures: dict[str, float]
    by_class: Tensor
    bins: Tensor | None
    scaled: Tensor | None = None
    confused: Tensor | None = None


def final(trainer: Trainer) -> dict[str, Final]:
    """Of the weights at the last step as the hooks present them, `last`, and of those in best_val.pt, `best_val`.

    Empty where the targets are not classes, the loss predicts none, or test is not measured; without `best_val` where
    nothing is held out for validation. The weights are as before. To be called by all processes of a run.
    """
    data = trainer.dataset
    if not trainer.guesses or data.test is None:
        return {}
    splits = [split for split in (data.test, data.val) if split is not None]
    found = {"last": of([trainer.predict(split) for split in splits], data.class_counts, trainer.loss)}
    if data.val is not None and "val" in trainer.best:
        if trainer.best["val"]["step"] == trainer.count:
            found["best_val"] = found["last"]
        elif isinstance(best := read(trainer, "val"), str):
            trainer.notices.append(f"{best}: best_val lacks the measures that are made of it")
        else:
            with loaded(trainer, best):
                predicted = [trainer.predict_as_is(split) for split in splits]
            found["best_val"] = of(predicted, data.class_counts, trainer.loss)
    return found


@torch.no_grad()
def samples(trainer: Trainer, count: int = 64) -> Tensor | None:
    """What the loss makes of noise with the weights at the last step as the hooks present them, in the data set's raw
    units and range; None where it makes nothing. The same whenever it is asked."""
    loss, data, loader = trainer.loss, trainer.dataset, trainer.loader
    if type(loss).sample is Loss.sample:
        return None
    like = next(loader.evaluate(data.train.select(torch.arange(min(count, len(data.train)))), count))
    trainer.model.eval()
    with trainer.hooks.weights(trainer):
        made = loss.sample(trainer.outputs, like, Draw(loader.seed, 0, 0, like.index)).to(loader.mean.dtype)
    trainer.model.train()
    made = made / loader.scale + loader.mean
    return (made if data.bounds is None else made.clamp(*data.bounds)).cpu()


def of(predicted: list[tuple[Tensor, Tensor]], class_counts: list[int], loss: Loss) -> Final:
    """From logits and targets of the test split and, where there is one, the validation split."""
    logits, y = predicted[0]
    own = loss.log_probabilities(logits)
    *_, confidence, right = scores(logits, y, own)
    by_class = class_accuracy(right, y, logits.shape[1])
    bins = binned(confidence, right, equal_width()) if loss.probabilities else None
    found = Final(group_accuracy(by_class, torch.tensor(class_counts)), by_class, bins, confused=confusion(logits, y))
    if len(predicted) > 1:
        t = temperature(loss.log_probabilities(predicted[1][0]), predicted[1][1])
        scaled = measures(own / t, y, "classes")
        found.measures |= {"temperature": t, **{f"scaled_{key}": scaled[key] for key in OF_PROBABILITIES}}
        *_, confidence, right = scores(own / t, y)
        found.scaled = binned(confidence, right, equal_width())
    found.measures = {key if key == "temperature" else f"test_{key}": value for key, value in found.measures.items()}
    return found


def read(trainer: Trainer, name: str) -> dict | str:
    """best_<name>.pt, or why it cannot be used; the same in all processes."""
    best = None
    if distributed.rank == 0:
        path = trainer.folder / f"best_{name}.pt"
        try:
            best = checkpoint.load(path)
            here = trainer.model.state_dict(), dict(trainer.loss.named_parameters())
            for part, own in zip(("model", "loss"), here, strict=True):
                there = best.get(part)
                if not isinstance(there, dict) or {k: v.shape for k, v in there.items()} != {
                    k: v.shape for k, v in own.items()
                }:
                    raise checkpoint.Damaged(f"{path} does not hold weights of this run")
        except FileNotFoundError:
            best = f"{path} is missing"
        except (ValueError, OSError, AttributeError) as error:
            best = str(error)
    return distributed.from_first(best)


@contextmanager
@torch.no_grad()
def loaded(trainer: Trainer, best: dict):
    """The model with the weights of a best_<name>.pt, which are what the hooks had made of them."""
    own = dict(trainer.loss.named_parameters())
    before = [(tensor, tensor.clone()) for tensor in (*trainer.model.state_dict().values(), *own.values())]
    trainer.model.load_state_dict(best["model"])
    for key, value in best["loss"].items():
        own[key].copy_(value)
    try:
        yield
    finally:
        for tensor, value in before:
            tensor.copy_(value)
