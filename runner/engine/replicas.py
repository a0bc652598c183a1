"""K runs of one structure as one: their weights on a leading axis, one vmapped pass, one backward for all.

What differs between them is numbers: of the seeds (so weights, data order, masks) and of any hyperparameter. Everything
else is the same code that one run uses, on tensors with one more axis (see `runner.core.weights`).
"""

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from runner.core import checkpoint, padding
from runner.core.batch import Batch, Output
from runner.core.weights import Weights
from runner.engine import diagnose
from runner.engine.packable import refuse
from runner.engine.stacked import Broken, StackedHooks, StackedLoader, Unpackable
from runner.engine.trainer import Trainer
from runner.loss import Loss
from runner.optim import twin
from runner.risk import Risk


class Replicas(Trainer):
    """The trainers of K runs, stepped together.

    Their tensors become rows of tensors that are shared here, so that between epochs each of them evaluates, records
    and saves itself by its own code: `scatter` tells them where training is.

    Raises
    ------
    Unpackable
        The runs differ in more than numbers, or something in them is not made for a replica axis.
    """

    def __init__(self, members: list[Trainer], loader=None):
        self.members = members
        self.constants: list[Tensor] = []  # hyperparameters: stacked, never written back
        self.broken: dict[int, Exception] = {}
        first = members[0]
        refuse(first)
        for what in ("count", "samples", "steps", "steps_per_epoch"):
            if len({getattr(member, what) for member in members}) > 1:
                raise Unpackable(f"the runs differ in {what}")
        try:
            weights = Weights.stack([member.weights for member in members])
        except ValueError as error:
            raise Unpackable(str(error)) from None
        super().__init__(
            dataset=first.dataset,
            loader=loader or StackedLoader([member.loader for member in members]),
            model=first.model,
            loss=first.loss,
            risk=first.risk,
            weights=weights,
            optimizer=self._optimizer(weights),
            schedule=first.schedule,
            sharpness=self._stack([member.sharpness for member in members], "sharpness"),
            hooks=StackedHooks(self),
            precision=first.precision,
            masks=first.masks,  # those of the model that serves all of them
            train=first.train,
            device=first.device,
            record=first.record,
        )
        self.closure = first.closure
        if first.balance is not None:
            self.balance = self._stack([member.balance for member in members], "balance")
        self.masks.seeds = [member.masks.seeds[0] for member in members]
        self.one_schedule = all(vars(member.schedule) == vars(first.schedule) for member in members)
        self.count = first.count
        self.loss_sum = torch.stack([member.loss_sum for member in members])
        self.correct = torch.stack([member.correct for member in members])
        self.samples = first.samples
        self._functional()

    # ---- stacking

    def _stack(self, objects: list[Any], where: str) -> Any:
        """One object of their class whose numbers and tensors are those of all of them."""
        stacked = copy.copy(objects[0])
        every = [vars(one) for one in objects]
        for name, values in zip(every[0], zip(*(own.values() for own in every), strict=True), strict=True):
            vars(stacked)[name] = self._merge(values, f"{where}.{name}")
        return stacked

    def _merge(self, values: tuple, where: str) -> Any:
        first = values[0]
        kinds = {type(value) for value in values}
        if kinds <= {int, float}:
            if all(value == first for value in values):
                return first
            whole = torch.tensor(values, dtype=torch.float64, device=self.members[0].device)
            self.constants.append(whole)
            return whole
        if len(kinds) == 1:
            if isinstance(first, Tensor):
                if len({value.shape for value in values}) == 1:
                    return torch.stack(values)
            elif isinstance(first, list | tuple):
                if len({len(value) for value in values}) == 1:
                    return type(first)(self._merge(part, where) for part in zip(*values, strict=True))
            elif isinstance(first, dict):
                if all(value.keys() == first.keys() for value in values):
                    return {key: self._merge(tuple(value[key] for value in values), f"{where}.{key}") for key in first}
            elif all(value is first or value == first for value in values):
                return first
        raise Unpackable(f"{where} differs between the runs, and not by a number")

    def _optimizer(self, weights: Weights) -> torch.optim.Optimizer:
        """An optimizer of their class over (K, P), with their hyperparameters and states."""
        stacked = twin(self.members[0].optimizer)
        stacked.param_groups = []
        for number, own in enumerate(weights.slices):
            groups = [dict(member.optimizer.param_groups[number]) for member in self.members]
            for group, member in zip(groups, self.members, strict=True):
                del group["params"]
                group["lr"] = member.base_lrs[number]  # what the schedule made of it belongs to a step
            stacked.param_groups.append({**self._merge(tuple(groups), "optim"), "params": [own]})
            states = tuple(one.optimizer.state.get(one.weights.slices[number], {}) for one in self.members)
            stacked.state[own] = self._merge(states, "optim")
        return stacked

    def _functional(self) -> None:
        """What the vmapped pass takes: parameters and buffers by name, and the numbers that are to be swapped in."""
        parts = [_Parts(member.model, member.loss, member.risk) for member in self.members]
        self.parts = parts[0]
        by_id = dict(zip(map(id, self.members[0].weights.parameters), self.weights.parameters, strict=True))
        self.values: dict[str, Tensor] = {}
        rest = [[*part.named_parameters(), *part.named_buffers()] for part in parts]
        for same in zip(*rest, strict=True):
            name, own = same[0]
            if id(own) in by_id:
                self.values[name] = by_id[id(own)]
            else:  # not trained: running statistics, memories of a loss, frozen weights
                if len({(other, tensor.shape) for other, tensor in same}) > 1:
                    raise Unpackable(f"{name} differs in shape between the runs")
                self.values[name] = torch.stack([tensor.detach() for _, tensor in same])
                for (_, tensor), row in zip(same, self.values[name], strict=True):
                    tensor.data = row
        wanted = {id(buffer) for buffer in self.members[0].buffers}
        self.buffers = [self.values[name] for name, buffer in self.parts.named_buffers() if id(buffer) in wanted]
        self.numbers: dict[tuple[int, str], Tensor] = {}
        self.owners: list[Any] = []
        for modules in zip(*(part.modules() for part in parts), strict=True):
            self._slot(modules)
        for name in sorted(self.hooks.together):
            hook = self.hooks.named[name]
            if StackedHooks._has(hook, "loss"):
                self.owners.append(hook)
                tensors = {key: value for key, value in vars(hook).items() if isinstance(value, Tensor)}
                self.numbers |= {(len(self.owners) - 1, key): value for key, value in tensors.items()}
                if any(isinstance(v, list | dict | tuple) and _holds_tensor(v) for v in vars(hook).values()):
                    raise Unpackable(
                        f"hook.{name} keeps tensors in a list, which its loss cannot have replica by replica"
                    )

    def _slot(self, modules: tuple[nn.Module, ...]) -> None:
        """Note the plain numbers in which these modules, one of each run, differ."""
        if len({type(module) for module in modules}) > 1:
            raise Unpackable(f"{type(modules[0]).__name__} differs between the runs")
        first = modules[0]
        for name, value in vars(first).items():
            if name.startswith("_") or name in ("training", "masks", "turn"):  # the last two are set before a step
                continue
            others = [vars(module).get(name) for module in modules]
            if all(other is value for other in others):
                continue
            merged = self._merge(tuple(others), f"{type(first).__name__}.{name}")
            if isinstance(merged, Tensor):
                self.owners.append(first)
                self.numbers[len(self.owners) - 1, name] = merged
            elif _holds_tensor(merged):
                raise Unpackable(f"{type(first).__name__}.{name} differs between the runs, and not by a number")

    # ---- the step

    def step(self, batch: Batch) -> Tensor | None:
        loss = super().step(batch)
        if self.broken:
            raise Broken(self.broken)
        return loss

    def objective(self, batch: Batch) -> tuple[Tensor, Output]:
        seen = Seen(self.count, self.steps, self.steps_per_epoch, self.parts.model)

        def one(values: dict, numbers: dict, tensors: dict) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
            own = Batch(**tensors, total=batch.total, epoch=batch.epoch)
            with self._holding(numbers):
                loss, out = functional_call(self.parts, values, (self, seen, own))
            if loss.dim() != (self.balance is not None):
                raise Unpackable(f"the risk with its penalties is {tuple(loss.shape)} for one run, not a scalar")
            return loss, out.logits, out.features, out.more

        loss, *out = vmap(one, randomness="error")(self.values, self.numbers, batch.tensors())
        self.ones = torch.ones_like(loss)
        return loss, Output(*out)

    @contextmanager
    def _holding(self, numbers: dict[tuple[int, str], Tensor]) -> Iterator[None]:
        """The numbers in their places, as vmap gives them: one replica's."""
        kept = {(owner, name): vars(self.owners[owner])[name] for owner, name in numbers}
        try:
            for (owner, name), value in numbers.items():
                vars(self.owners[owner])[name] = value
            yield
        finally:
            for (owner, name), value in kept.items():
                vars(self.owners[owner])[name] = value

    def set_lr(self) -> None:
        position = (self.count, self.steps, self.steps_per_epoch)
        if self.one_schedule:
            factor = self.schedule(*position)
        else:
            factors = [member.schedule(*position) for member in self.members]
            factor = torch.tensor(factors, dtype=torch.float64, device=self.device)
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * factor

    def observe(self, out: Output, batch: Batch) -> None:
        memories = type(self.loss).observe is not Loss.observe or type(self.risk).observe is not Risk.observe
        if memories or self.hooks.observers:
            for k, member in enumerate(self.members):
                member.count = self.count
                member.observe(out.each(lambda value, k=k: value[k]), batch.replica(k))

    def look(self, batch: Batch | None = None) -> None:
        """Note whose loss was not finite: that replica alone ends, after the present step."""
        if not self.recent:
            return
        finite = torch.isfinite(torch.stack([loss for _, loss in self.recent]))
        for k in (~finite.all(0)).nonzero().flatten().tolist():
            if k not in self.broken:
                step = self.recent[int((~finite[:, k]).nonzero()[0])][0]
                member = self.members[k]
                member.count = self.count
                member.set_lr()
                own = None if batch is None else batch.replica(k)
                self.broken[k] = diagnose.NonFinite(diagnose.explain(member, own, step))
        self.recent.clear()

    # ---- the ends of an epoch

    def fit(self) -> None:
        for member in self.members:
            member.tick_from_now()
        super().fit()

    def end_epoch(self, rate: float) -> None:
        self.look()
        self.scatter()
        self._each(lambda member: member.end_epoch(rate))
        self.loss_sum.zero_(), self.correct.zero_()
        self.samples = 0

    def show(self) -> None:
        self._each(lambda member: member.show())

    def save(self) -> None:
        self.look()
        self.scatter()
        with checkpoint.at_one_step():
            self._each(lambda member: member.save())
        self.saved = time.perf_counter()

    def _each(self, act) -> None:
        """For every replica that is well; whose record cannot be written, for example, ends alone."""
        for k, member in enumerate(self.members):
            if k not in self.broken:
                try:
                    act(member)
                except Exception as error:
                    self.broken[k] = error
        if self.broken:
            raise Broken(self.broken)

    def scatter(self) -> None:
        """Every member as if it had come here alone. Tensors are rows of those here, so that nothing is copied."""
        losses, correct = self.loss_sum.unbind(), self.correct.unbind()
        for k, member in enumerate(self.members):
            member.count, member.samples = self.count, self.samples
            member.loss_sum.copy_(losses[k]), member.correct.copy_(correct[k])
        for number, (group, own) in enumerate(zip(self.optimizer.param_groups, self.weights.slices, strict=True)):
            lrs = group["lr"].tolist() if isinstance(group["lr"], Tensor) else [group["lr"]] * len(self.members)
            for k, member in enumerate(self.members):
                member.optimizer.param_groups[number]["lr"] = lrs[k]
                if state := self.optimizer.state[own]:
                    member.optimizer.state[member.weights.slices[number]] = self._row(state, k)
        self.hooks.share()

    def _constant(self, value: Any) -> bool:
        """Whether it is, or holds, a hyperparameter: every run has its own already."""
        if isinstance(value, list | tuple):
            return any(map(self._constant, value))
        return any(value is constant for constant in self.constants)

    def _row(self, value: Any, k: int) -> Any:
        if isinstance(value, Tensor):
            return value[k]
        if isinstance(value, list | tuple):
            return type(value)(self._row(part, k) for part in value)
        if isinstance(value, dict):
            return {key: self._row(part, k) for key, part in value.items()}
        return value

    # ---- for a trial

    def snapshot(self) -> dict:
        """What `restore` needs to undo steps."""
        together = {name: vars(self.hooks.named[name]) for name in self.hooks.together}
        looped = [{n: h.state_dict() for n, h in m.hooks.named.items() if n not in together} for m in self.members]
        state = [self.optimizer.state[own] for own in self.weights.slices]
        values = {name: value.detach().clone() for name, value in self.values.items()}
        return {"values": values, "rest": copy.deepcopy((together, looped, state)), "count": self.count}

    @torch.no_grad()
    def restore(self, snapshot: dict) -> None:
        for name, value in snapshot["values"].items():
            self.values[name].copy_(value)
        together, looped, state = copy.deepcopy(snapshot["rest"])  # to be used again
        for name, kept in together.items():
            hook = vars(self.hooks.named[name])
            hook.update(
                (key, _put_back(hook.get(key), v)) for key, v in kept.items() if not self._constant(hook.get(key))
            )
        for member, hooks in zip(self.members, looped, strict=True):
            for name, kept in hooks.items():
                member.hooks.named[name].load_state_dict(kept)
        self.optimizer.state |= dict(zip(self.weights.slices, state, strict=True))
        self.count, self.samples = snapshot["count"], self.members[0].samples
        for member in self.members:
            member.count = self.count  # hooks were told it step by step
        self.loss_sum.copy_(torch.stack([member.loss_sum for member in self.members]))
        self.correct.copy_(torch.stack([member.correct for member in self.members]))
        self.recent.clear(), self.broken.clear()


class Seen(SimpleNamespace):
    """What a hook's loss may know of the run when runs are side by side; the model's tensors are one replica's then."""

    def __init__(self, count: int, steps: int, steps_per_epoch: int, model: nn.Module):
        super().__init__(count=count, steps=steps, steps_per_epoch=steps_per_epoch, model=model)

    def __getattr__(self, name: str):
        raise Unpackable(f"a hook's loss reads run.{name}, of which every run has its own")


class _Parts(nn.Module):
    """Model, loss and risk as one module, of which `functional_call` swaps every tensor."""

    def __init__(self, model: nn.Module, loss: Loss, risk: nn.Module):
        super().__init__()
        self.model, self.loss, self.risk = model, loss, risk

    def forward(self, run: Replicas, seen: Seen, batch: Batch) -> tuple[Tensor, Output]:
        def net(x: Tensor, **given: Tensor) -> Output:
            times = len(x) // len(batch)  # several versions of every sample
            mask = batch.mask if times == 1 or batch.mask is None else batch.mask.repeat(times)
            with run.precision.autocast(), padding.left_out(run.norms, mask):
                out = self.model(x, **given)
            return self.loss.head(out)

        out = self.loss.ask(net, batch)
        return run.closure.minimised(run, seen, out, batch), out


def _put_back(now: Any, then: Any) -> Any:
    """`then`, in the tensors of `now`: others hold rows of them."""
    if isinstance(now, Tensor):
        return now.copy_(then)
    if isinstance(now, list):
        return [_put_back(*pair) for pair in zip(now, then, strict=True)]
    return then


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    return isinstance(value, Tensor) or (isinstance(value, list | tuple) and any(map(_holds_tensor, value)))
