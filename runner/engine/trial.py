"""Do the parts of a run keep to their seams? Tried before anything is written, so that a mistake is one line.

`output` and `value` look at one forward of two samples, for every run. A run with a part that is not this package's
takes two steps more, in objects that are thrown away (`two_steps`): every method of such a part is called as training
calls it, and what it returns is looked at.
"""

import copy
import io
import math
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from runner.augment import Augment
from runner.command.build import locate
from runner.command.config import LISTS, SINGLES
from runner.core.batch import Batch, Output, Pass
from runner.core.blame import HERE, blame, own_frame, source
from runner.core.mistake import ConfigError
from runner.core.precision import Overflow, Precision
from runner.dataset import Dataset
from runner.engine.closure import Asked
from runner.engine.diagnose import NonFinite
from runner.federated import Federated
from runner.hook import Hook, Hooks
from runner.loss import Loss
from runner.record.folder import Stopped
from runner.risk import units
from runner.sharpness import Sharpness

SAMPLES = 8  # of a trial's batch


@contextmanager
def guard(where: str, part: Any, doing: str):
    """Whatever a part raises becomes a ConfigError that names it, its file, and the line."""
    try:
        yield
    except (ConfigError, KeyboardInterrupt, NonFinite, Overflow, Stopped):
        raise
    except BaseException as error:  # SystemExit included
        who = "" if part is None else f"{named(part)} "
        raise ConfigError(f"{where}: {who}{doing}: {blame(error)}") from error


@contextmanager
def one_line(where: str = ""):
    """What code of the user's raises where nobody expects it, as a line that names its file. Other errors stay as they
    are."""
    try:
        yield
    except (Exception, SystemExit) as error:
        if isinstance(error, ConfigError | NonFinite | Overflow | Stopped) or own_frame(error) is None:
            raise
        raise ConfigError(f"{where}: {blame(error)}".removeprefix(": ")) from error


@contextmanager
def theirs(where: str, part: Any, doing: str):
    """`guard`, of a part whose class is not this package's. A ValueError stays one: it has its own words."""
    try:
        yield
    except ValueError:
        raise
    except BaseException as error:
        if type(part).__module__.partition(".")[0] == HERE.name:
            raise
        with guard(where, part, doing):
            raise error


def named(part: Any) -> str:
    """The class of a part, with its file where it is the user's."""
    kind = part if isinstance(part, type) else type(part)
    return f"{kind.__name__}{source(kind)}"


def wrong(where: str, part: Any, method: str, expected: str, got: Any) -> ConfigError:
    call = f"{named(part)}{f'.{method}' if method else ''}"
    return ConfigError(f"{where}: {call} must return {expected}, got {_kind(got)}")


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {tuple(value.shape)} in {str(value.dtype).removeprefix('torch.')}"
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)[:60]
    return f"an object of {type(value).__name__}"


# ---- for every run


def output(model: nn.Module, example: Batch, precision: Precision) -> Output:
    """The model's output of two samples, in evaluation mode. Raises ConfigError where it is none."""
    model.eval()
    with guard("model", model, f"does not take a batch of {tuple(example.x.shape)}"), precision.autocast():
        out = model(example.x)
    model.train()
    an_output("model", model, "forward", out, len(example))
    return out


def an_output(where: str, part: Any, method: str, out: Any, samples: int, classes: int | None = None) -> None:
    """Raises ConfigError where this is no Output of so many samples and, where they are said, classes."""
    if not isinstance(out, Output):
        raise wrong(where, part, method, "runner.core.batch.Output(logits, features)", out)
    for name in ("logits", "features"):
        found = getattr(out, name)
        if not isinstance(found, Tensor) or not found.is_floating_point() or found.dim() < 2 or len(found) != samples:
            shape = f"({samples}, ...)" if classes is None or name == "features" else f"({samples}, {classes})"
            raise wrong(where, part, method, f"{name} as a floating-point tensor {shape}", found)
    if classes is not None and out.logits.shape[-1] != classes:
        raise wrong(where, part, method, f"logits of {classes} classes, ({samples}, {classes})", out.logits)


def value(model: nn.Module, loss: Loss, risk: nn.Module, out: Output, example: Batch, dataset: Dataset) -> None:
    """The same of the loss and the risk, which are made for the model's features. A gradient must reach from the risk
    to some parameter. Raises ConfigError."""
    model.eval()
    with guard("loss", loss, "cannot take the model's output"):  # `out` where that is what it asks for
        made = loss.ask(lambda x, **more: loss.head(out if x is example.x and not more else model(x, **more)), example)
    model.train()
    where, part, method = ("model", model, "forward") if type(loss).head is Loss.head else ("loss", loss, "head")
    alike = loss.predicts and type(loss).moments is Loss.moments  # else a target has several outputs, or none
    an_output(where, part, method, made, len(example), dataset.classes if alike else None)
    shapes = f"logits of {tuple(made.logits.shape)} and targets of {tuple(example.y.shape)}"
    with guard("loss", loss, f"cannot take {shapes}"):
        losses = loss(made, example)
    per_sample(loss, losses, made)
    with guard("risk", risk, f"cannot take losses of {tuple(losses.shape)}"):
        total = risk(*units(losses, example, dataset))
    scalar("risk", risk, "forward", total)
    if not total.requires_grad and any(p.requires_grad for part in (model, loss, risk) for p in part.parameters()):
        if losses.requires_grad:
            where, part, method = "risk", risk, "forward"
        elif made.logits.requires_grad or made.features.requires_grad:
            where, part, method = "loss", loss, "forward"
        raise ConfigError(
            f"{where}: {named(part)}.{method} returns a value without a gradient: no parameter takes part in it, or it "
            "was detached"
        )


def per_sample(loss: Loss, losses: Any, out: Output) -> None:
    wanted = tuple(out.logits.shape[:-1])
    if not isinstance(losses, Tensor) or not losses.is_floating_point() or tuple(losses.shape) != wanted:
        raise wrong("loss", loss, "forward", f"one value per sample, a floating-point tensor {wanted}", losses)


def scalar(where: str, part: Any, method: str, total: Any) -> None:
    if not isinstance(total, Tensor) or not total.is_floating_point() or total.dim() != 0:
        raise wrong(where, part, method, "a scalar, a floating-point tensor ()", total)


def attributes(optimizer: torch.optim.Optimizer, sharpness: Sharpness) -> None:
    """Raises ConfigError where there is no learning rate that a schedule could set, or no m that is samples."""
    with guard("sharpness", sharpness, "has no m"):
        m = sharpness.m
    if m is not None and (not isinstance(m, int) or isinstance(m, bool) or m < 1):
        raise ConfigError(f"sharpness: {named(sharpness)}.m must be a number of samples or None, got {_kind(m)}")
    with guard("optim", optimizer, "has no param_groups, which torch.optim.Optimizer.__init__ makes"):
        groups = optimizer.param_groups
    if not all("lr" in group for group in groups):
        raise ConfigError(f"optim: {named(optimizer)} has no 'lr' in its param_groups, which the schedule sets")


def among(federated: Federated, hooks: dict[str, Hook]) -> dict[str, Hook]:
    """`federated.among(hooks)`. Raises ConfigError where that is no dict of hooks, or where there is no training."""
    with guard("federated", federated, "fails in among"):
        found = federated.among(hooks)
    if not isinstance(found, dict) or not all(isinstance(hook, Hook) for hook in found.values()):
        raise wrong("federated", federated, "among", "a dict of the run's hooks", found)
    if type(federated).run is Federated.run:
        raise ConfigError(f"federated: {named(federated)} defines no run(trainer), the whole of training")
    return found


# ---- for a run with parts of others


def foreign(config: dict) -> list[str]:
    """The nodes whose class is not this package's."""
    nodes = {group: config[group] for group in SINGLES} | {
        f"{group}.{name}": node for group in LISTS for name, node in config[group].items()
    }
    found = {where: locate(node["_target_"], where).__module__ for where, node in nodes.items()}
    return [where for where, module in found.items() if module.partition(".")[0] != HERE.name]


def tried(config: dict) -> list[str]:
    """Those of them that two steps can say something about."""
    return [where for where in foreign(config) if where != "federated" and not where.startswith("logger.")]


def central(config: dict) -> dict:
    """The config with plain training in one place: what a client's step does, without rounds."""
    plain = {"_target_": "runner.federated.none.Central"}
    return {**config, "federated": plain, "choices": {**config["choices"], "federated": "none"}}


def two_steps(trainer, transform, calibration: Batch, parts: list[str]) -> None:
    """Take two steps of a few samples with a trainer that is not used for anything else; the parts at these nodes are
    watched. Raises ConfigError."""
    loader, model = trainer.loader, trainer.model
    few = SAMPLES * trainer.dataset.bag_size * loader.sampler.block
    loader.workers, loader.batch_size = 0, min(loader.batch_size, few)
    trainer.forward = model  # not compiled
    model.train()
    taken = _watch(trainer, parts)
    with guard(", ".join(parts), None, "two steps of training fail"):
        try:
            for batch in islice(loader.epoch(0), 2):
                trainer.step(batch)
        except NonFinite:  # a divergence is a result, and said as one
            return
        trainer.shown()
    for part, method in taken:
        delattr(part, method)
    for name in (part.removeprefix("hook.") for part in parts if part.startswith("hook.")):
        _kept(f"hook.{name}", trainer.hooks.named[name])
    if "quantization" in parts:
        with guard("quantization", transform, "convert fails"):
            made = transform.convert(copy.deepcopy(model).eval(), calibration)
        if not isinstance(made, nn.Module):
            raise wrong("quantization", transform, "convert", "a torch.nn.Module", made)


def _kept(where: str, hook: Hook) -> None:
    """The state of a hook goes into a checkpoint and out again."""
    with guard(where, hook, "state_dict, or load_state_dict of what it returned, fails"):
        state, content = hook.state_dict(), io.BytesIO()
        if isinstance(state, dict):
            torch.save(state, content)
            hook.load_state_dict(torch.load(io.BytesIO(content.getvalue()), weights_only=True))
    if not isinstance(state, dict):
        raise wrong(where, hook, "state_dict", "a dict of tensors, numbers, strings and their lists", state)


# what each part's methods return: (the value, the arguments) -> None, or ConfigError


def _watch(trainer, parts: list[str]) -> list[tuple[Any, str]]:
    """Put checks around the methods of these parts; returns the attributes that were set."""
    taken: list[tuple[Any, str]] = []

    def around(where: str, part: Any, method: str, look: Callable, frozen: bool = True) -> None:
        call = getattr(part, method)

        def watched(*given, **named_):
            before = [(tensor, tensor.detach().clone()) for tensor in _tensors(given)] if frozen else []
            with guard(where, part, f"fails in {method}"):
                found = call(*given, **named_)
            look(found, *given)
            if not all(torch.equal(tensor.nan_to_num(), copied.nan_to_num()) for tensor, copied in before):
                raise ConfigError(
                    f"{where}: {named(part)}.{method} changes what it is given in place: another pass over the same "
                    "batch would see it changed"
                )
            return found

        setattr(part, method, watched)
        taken.append((part, method))

    model, loss, risk, classes = trainer.model, trainer.loss, trainer.risk, trainer.dataset.classes
    if "model" in parts:
        shape = classes if type(loss).head is Loss.head else None
        around("model", model, "forward", lambda out, x: an_output("model", model, "forward", out, len(x), shape))
    if "loss" in parts:
        around("loss", loss, "forward", lambda found, out, batch: per_sample(loss, found, out))
        around("loss", loss, "observe", lambda found, *_: _nothing("loss", loss, "observe", found))
    if "risk" in parts:
        around("risk", risk, "forward", lambda found, *_: scalar("risk", risk, "forward", found))
        around("risk", risk, "observe", lambda found, *_: _nothing("risk", risk, "observe", found))
    if "optim" in parts:
        _watch_optimizer(trainer)
    if "schedule" in parts:
        trainer.schedule = _factor(trainer.schedule)
        for step in (0, trainer.steps // 2, trainer.steps - 1):
            trainer.schedule(step, trainer.steps, trainer.steps_per_epoch)
    if "sharpness" in parts:
        trainer.sharpness = _Ascent(trainer.sharpness)
    for where in parts:
        if where.startswith("hook."):
            hook = trainer.hooks.named[where.removeprefix("hook.")]
            _defines(where, hook, Hook)
            for method, look in _HOOK.items():
                if getattr(type(hook), method) is not getattr(Hook, method):
                    around(
                        where, hook, method, partial(look, where, hook, method), frozen=method in ("loss", "observe")
                    )
    trainer.hooks = Hooks(trainer.hooks.named)
    loader = trainer.loader
    for augment in {id(a): a for a in (*loader.pixel_augments, *loader.batch_augments)}.values():
        if type(augment).__module__.partition(".")[0] != HERE.name:
            for method, look in _AUGMENT.items():
                if getattr(type(augment), method) is not getattr(Augment, method):
                    around("augment", augment, method, partial(look, "augment", augment, method), frozen=False)
    return taken


def _tensors(given: tuple) -> list[Tensor]:
    found = [value for value in given if isinstance(value, Tensor)]
    for value in given:
        if isinstance(value, Batch | Output):
            value.each(lambda tensor: found.append(tensor) or tensor)
    return found


def _defines(where: str, part: Any, base: type) -> None:
    methods = [name for name, value in vars(base).items() if callable(value) and not name.startswith("_")]
    if all(getattr(type(part), name) is getattr(base, name) for name in methods):
        raise ConfigError(f"{where}: {named(part)} defines none of the methods that are called: {', '.join(methods)}")


def _nothing(where: str, part: Any, method: str, found: Any, *_) -> None:
    if found is not None:
        raise wrong(where, part, method, "nothing: what it changes it changes in place", found)


def _a_batch(where: str, part: Any, method: str, found: Any, *given) -> None:
    if not isinstance(found, Batch) or not len(found):
        raise wrong(where, part, method, "a runner.core.batch.Batch", found)


def _a_penalty(where: str, part: Any, method: str, found: Any, *_) -> None:
    if isinstance(found, bool) or not isinstance(found, int | float):
        scalar(where, part, method, found)


def _a_context(where: str, part: Any, method: str, found: Any, *_) -> None:
    if not hasattr(found, "__enter__") or not hasattr(found, "__exit__"):
        raise wrong(where, part, method, "a context manager", found)


def _pixels(where: str, part: Any, method: str, found: Any, x: Tensor, *_) -> None:
    if not isinstance(found, Tensor) or found.dim() != x.dim() or found.shape[:2] != x.shape[:2]:
        raise wrong(where, part, method, f"inputs as it was given them, {tuple(x.shape)}", found)


_HOOK = {name: _nothing for name in ("before", "observe", "gradient", "step")}
_HOOK |= {"batch": _a_batch, "loss": _a_penalty, "weights": _a_context}
_AUGMENT = {"pixels": _pixels, "batch": _a_batch}


def _factor(schedule) -> Callable:
    def factor(step: int, steps: int, steps_per_epoch: int) -> float:
        with guard("schedule", schedule, f"fails at step {step} of {steps}"):
            found = schedule(step, steps, steps_per_epoch)
        good = isinstance(found, int | float) and not isinstance(found, bool) and math.isfinite(found) and found >= 0
        if not good:
            what = f"a finite number at least 0, as at step {step} of {steps}"
            raise wrong("schedule", schedule, "factor", what, found)
        return found

    return factor


class _Ascent(Sharpness):
    """A sharpness method, watched."""

    def __init__(self, inner: Sharpness):
        self.inner, self.m = inner, inner.m

    def __call__(self, closure, weights) -> Pass:
        before = weights.clone()
        with guard("sharpness", self.inner, "fails"):
            found = self.inner(closure, weights)
        if not isinstance(found, Pass):
            raise wrong(
                "sharpness", self.inner, "__call__", "the runner.core.batch.Pass of a call of the closure", found
            )
        if not torch.equal(before, weights.data):
            raise ConfigError(
                f"sharpness: {named(self.inner)} must leave the weights as they were, bit for bit: move them within "
                "`with weights.restored():`"
            )
        return found


def _watch_optimizer(trainer) -> None:
    optimizer, step = trainer.optimizer, trainer.optimizer.step

    def watched(closure: Asked):
        with guard("optim", optimizer, "fails in step(closure)"):
            found = step(closure)
        if closure.begin is None:
            raise ConfigError(f"optim: {named(optimizer)}.step must call the closure, which makes the gradient")
        return found

    optimizer.step = watched
