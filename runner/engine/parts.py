"""The parts in which samples reach the model, the smallest of which is known before the first step."""

import inspect
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from runner.command.build import kinds, locate
from runner.core import distributed
from runner.core.batch import Batch
from runner.core.mistake import ConfigError
from runner.dataset import Dataset
from runner.engine import trial
from runner.engine.trainer import Trainer
from runner.loss import Loss
from runner.risk import attended, units
from runner.sampler import Sampler
from runner.transform import Transform


def prepare(sampler: Sampler, dataset: Dataset, batch_size: int, seed: int) -> None:
    """Make a sampler ready, and look at its first epoch: what it gives must be samples that there are."""
    count = len(dataset.train)
    with trial.theirs("sampler", sampler, "fails in prepare or order"):
        sampler.prepare(dataset.train, batch_size, seed, dataset.bag_size)
        order = sampler.order(0)
    expected = f"samples of 0 to {count - 1} as a tensor ({sampler.length},) in int64"
    fits = isinstance(order, torch.Tensor) and order.shape == (sampler.length,) and order.dtype == torch.int64
    if not fits or (len(order) and not 0 <= order.min() <= order.max() < count):
        raise trial.wrong("sampler", sampler, "order", expected, order)
    if sampler.whole and len(order.unique()) < len(order):
        raise ConfigError(f"sampler: {trial.named(sampler)}.order visits a sample twice in an epoch: set whole = False")
    dataset.notices += sampler.notices()


def together(config: dict, loss: Loss, model: torch.nn.Module, dataset: Dataset) -> None:
    """Raise ConfigError where this loss asks for what this model, these data or the other options do not give."""
    name = f"loss={config['choices']['loss']}"
    if loss.needs and not takes(model, loss.needs):
        others = [option for option, kind in kinds("model").items() if takes(kind, loss.needs)]
        raise ConfigError(
            f"{name} calls the model with {' and '.join(loss.needs)}, which model={config['choices']['model']} does "
            f"not take; those that do are model={', '.join(others)}"
        )
    if dataset.task == "tasks" and not takes(type(model), ["heads"], "__init__"):
        others = [option for option, kind in kinds("model").items() if takes(kind, ["heads"], "__init__")]
        raise ConfigError(
            f"dataset={config['choices']['dataset']} has several tasks, and model={config['choices']['model']} one "
            f"head; those with one for each are model={', '.join(others)}"
        )
    if dataset.task == "tasks" and (quantization := config["choices"]["quantization"]) != "none":
        dataset.notices.append(f"quantization={quantization}: its last layer is the head of the last task alone")
    augments, hooks = (
        {option: locate(node["_target_"], group) for option, node in config[group].items()}
        for group in ("augment", "hook")
    )
    for option in (option for option, kind in augments.items() if getattr(kind, "mixes", False)):
        if loss.views or not loss.predicts:
            raise ConfigError(f"augment={option} mixes samples, and {name} wants each alone")
    for option in (option for option, kind in hooks.items() if getattr(kind, "predictions", False)):
        if not loss.predicts:
            raise ConfigError(f"hook={option} goes by predictions, and {name} makes none")
    for option, node in config["augment"].items():
        asked, there = node.get("views"), ["x", *loss.views]
        if asked is not None and (not asked or set(asked) - set(there)):
            raise ConfigError(f"augment.{option}.views={asked}: {name} has the views {' and '.join(there)}")
    if loss.views and getattr(dataset.train.base, "random_crop", False):
        raise ConfigError(
            f"{name} wants several views, and streamed images are cropped once: set dataset.random_crop=false"
        )
    if not loss.predicts and (quantization := config["choices"]["quantization"]) != "none":
        raise ConfigError(
            f"quantization={quantization} measures what is deployed by its predictions, and {name} makes none: set "
            "quantization=none"
        )


def takes(model: torch.nn.Module | type, words: Iterable[str], method: str = "forward") -> bool:
    """Whether the model's forward, or another method, has these keywords."""
    return set(words) <= inspect.signature(getattr(model, method)).parameters.keys()


def changed(changes: dict[str, Transform], when: str, model: torch.nn.Module, example: Batch) -> torch.nn.Module:
    """The model with these transforms of that kind, in their order. Raises ConfigError."""
    for where, change in changes.items():
        if change.when != when:
            continue
        with trial.guard(where, change, "prepare fails"):
            try:
                made = change.prepare(model, example)
            except ValueError as error:
                raise ConfigError(f"{where.replace('.', '=')}: {error}") from error
        if not isinstance(made, torch.nn.Module):
            raise trial.wrong(where, change, "prepare", "the model, a torch.nn.Module", made)
        model = made
    return model


def check(run: Trainer, epochs: Iterable[tuple[int, int, str]], example: Batch) -> None:
    """Refuse a run of which some part is one sample, where model, loss or risk cannot take one.

    epochs : the training samples that are visited in turn, how many steps they are visited for, and whose they are; see
    `runner.federated.Federated.epochs`. Of two samples there are statistics, whatever they are taken over.
    """
    m, size = run.sharpness.m, run.loader.batch_size
    if m is not None and m >= size and distributed.world == 1:
        run.notices.append(
            f"sharpness.m={m}: no batch has more than {size} samples, one perturbation is for all of them"
        )
    every = [part for own in epochs for of in batches(run, *own) for part in cut(run, *of)]
    block = run.loader.sampler.block
    for size, why, _ in every:
        if size % block:
            raise ConfigError(f"{why} has {size} samples, and the sampler puts {block} together: it must be a multiple")
    size, why, instead = min(every, key=lambda part: part[0])
    if size == 1 and (fault := refusal(run, example)):
        comma = "," if "," in why else ""
        raise ConfigError(
            f"{why}{comma} would be one sample, which this model or its loss cannot take ({fault}); {instead}"
        )


def batches(run: Trainer, samples: int, steps: int, whose: str) -> Iterator[tuple[int, str, str]]:
    """(samples, what they are, what to do were they too few) of the different batches that are really reached."""
    size, per_epoch = run.loader.batch_size, run.loader.steps(samples)
    if samples >= size:
        yield size, f"a batch of {size}", "take a larger train.batch_size"
    if per_epoch > samples // size and steps >= per_epoch:
        yield (
            samples % size,
            f"the last batch of {whose} {samples:,} samples",
            "set train.drop_last=true or another train.batch_size",
        )


def cut(run: Trainer, size: int, why: str, instead: str) -> Iterator[tuple[int, str, str]]:
    """The same of the parts that such a batch is cut into: shares of processes, sharpness.m, micro-batches."""
    world = distributed.world
    for share in {size * (rank + 1) // world - size * rank // world for rank in range(world)}:
        shared = f"{why} shared by {world} processes"
        here = (share, shared, "take another train.batch_size") if world > 1 else (size, why, instead)
        for part, why_part, instead_part in _pieces(*here, run.sharpness.m, "sharpness.m={}"):
            micro = -(-part // run.train.accumulate)
            told = f"train.accumulate={run.train.accumulate}"
            yield from _pieces(part, why_part, instead_part, micro, told)


def _pieces(size: int, why: str, instead: str, at_most: int | None, key: str) -> Iterator[tuple[int, str, str]]:
    if at_most is None or at_most >= size:
        yield size, why, instead
        return
    key = key.format(at_most)
    for piece in {at_most, size % at_most} - {0}:
        yield (
            piece,
            f"a part of {why.removeprefix('a part of ')}, cut by {key}",
            f"choose another {key.partition('=')[0]} or train.batch_size",
        )


def refusal(run: Trainer, example: Batch) -> str | None:
    """Why model, loss or risk cannot take a batch of one sample in training, or None: tried, and nothing is left."""
    kept = [(buffer, buffer.clone()) for part in (run.model, run.loss, run.risk) for buffer in part.buffers()]
    training, here, forward = run.model.training, run.draws.where(), run.forward
    one = replace(example.select(slice(0, 1)), total=1)
    run.forward = run.model  # not what torch.compile made of it, which would be compiled for this size
    run.model.train()
    try:
        with torch.no_grad(), run.statistics(live=False), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = run.loss.ask(run.outputs, one)
            losses = run.loss(out, one)
            value = run.risk(*units(attended(losses, one), one, run.dataset))
    except Exception as error:
        return next(iter(str(error).splitlines()), type(error).__name__)
    finally:
        run.forward = forward
        run.model.train(training)
        run.draws.go(here)
        for buffer, before in kept:
            buffer.copy_(before)
    if not all(torch.isfinite(tensor).all() for tensor in (out.logits, value)):
        return "what comes out is not finite"
    return None
