"""Hooks and loaders of K runs as those of one: what `runner.engine.replicas` calls once is done for each, in rows."""

from collections.abc import Iterator

import torch

from runner.core.batch import Batch
from runner.engine.trainer import Trainer
from runner.hook import Hook, Hooks
from runner.sampler import Sampler


class Unpackable(Exception):
    """Why runs cannot, or should not, be trained side by side: one line. They are then run one by one."""


class Broken(Exception):
    """Some replicas cannot go on; the others can, once they are put together anew."""

    def __init__(self, errors: dict[int, Exception]):
        self.errors = errors


class StackedHooks(Hooks):
    """The hooks of K runs: called once where they work on replicas, else for one run after another.

    `named` holds the stacked hook of the former, and of the latter the first run's.
    """

    def __init__(self, run: Trainer):
        self.run = run
        self.together = set()
        hooks = {}
        for name, first in run.members[0].hooks.named.items():
            own = [method for method in ("batch", "observe", "gradient", "step") if self._has(first, method)]
            at_once = type(first).replicas
            if self._has(first, "loss") and own and not at_once:
                raise Unpackable(f"hook={name} has a penalty and does not say that it works on replicas")
            if at_once or self._has(first, "loss"):
                self.together.add(name)
                first = run._stack([member.hooks.named[name] for member in run.members], f"hook.{name}")
            hooks[name] = first
        super().__init__(hooks)
        self.share()

    def share(self) -> None:
        """Every run's own hook has its row of the stacked one's tensors, and its other values."""
        for name in self.together:
            for k, member in enumerate(self.run.members):
                own = vars(member.hooks.named[name])
                for key, value in vars(self.named[name]).items():
                    if not self.run._constant(value):
                        own[key] = self.run._row(value, k)

    @staticmethod
    def _has(hook: Hook, method: str) -> bool:
        return getattr(type(hook), method) is not getattr(Hook, method)

    def _each(self, method: str) -> None:
        for name, hook in self.named.items():
            if not self._has(hook, method):
                continue
            if name in self.together:
                getattr(hook, method)(self.run)
            else:
                for member in self.run.members:
                    member.count = self.run.count
                    getattr(member.hooks.named[name], method)(member)

    def before(self, run: Trainer) -> None:
        for member in self.run.members if self.befores else ():
            member.count, member.steps, member.steps_per_epoch = run.count, run.steps, run.steps_per_epoch
            member.hooks.before(member)

    def batch(self, run: Trainer, batch: Batch) -> Batch:
        if not self.batches:
            return batch
        changed = []
        for k, member in enumerate(self.run.members):
            member.count, member.masks.step, member.masks.forwards = self.run.count, self.run.masks.step, 0
            changed.append(member.hooks.batch(member, batch.replica(k)))
        if len({(len(own), own.total) for own in changed}) > 1:
            raise Unpackable("a hook leaves batches of different sizes")
        return Batch.stack(changed)

    def gradient(self, run: Trainer, note: bool = True) -> None:
        self._each("gradient")  # once a step, by optimizers that work on replicas

    def step(self, run: Trainer) -> None:
        self._each("step")


class StackedLoader:
    """The batches of K loaders as (K, B, ...). Inputs that the data sets share are gathered from one copy."""

    def __init__(self, loaders: list):
        first = loaders[0]
        self.loaders, self.steps_per_epoch = loaders, first.steps_per_epoch
        splits = [loader._train for loader in loaders]
        if len({(len(split), split.base.shape[1:], split.y.shape, split.domain is None) for split in splits}) > 1:
            raise Unpackable("the runs differ in the number of samples or their shape")
        bases = list({id(split.base): split.base for split in splits}.values())
        starts = dict(zip(map(id, bases), [0, *torch.tensor([len(base) for base in bases]).cumsum(0).tolist()]))
        self.base = bases[0] if len(bases) == 1 else torch.cat(bases)
        every = torch.arange(len(splits[0]), device=first.device)
        self.rows = torch.stack(
            [(every if split.rows is None else split.rows) + starts[id(split.base)] for split in splits]
        )
        self.y = torch.cat([split.y for split in splits])
        self.domain = None if splits[0].domain is None else torch.cat([split.domain for split in splits])
        self.offsets = torch.arange(len(splits), device=first.device).unsqueeze(1) * len(splits[0])
        same = all(torch.equal(x.mean, first.mean) and torch.equal(x.scale, first.scale) for x in loaders)
        self.alike = same and not first.draws and not first.ignores and type(first.sampler).about is Sampler.about

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        order = torch.stack([loader.order(epoch) for loader in self.loaders])
        where, keys = (
            self.rows.gather(1, order),
            [loader.keys(own) for loader, own in zip(self.loaders, order, strict=True)],
        )
        samples = order.shape[1]
        first = self.loaders[0]
        for step in range(start, self.steps_per_epoch):
            share, total = first._share(step, samples), first._total(step, samples)
            index = order[:, share]
            x = self.base.index_select(0, where[:, share].flatten())
            if self.alike:
                x = first._normalise(x).unflatten(0, index.shape)
                flat = (index + self.offsets).flatten()
                y, domain = (
                    None if of is None else of.index_select(0, flat).unflatten(0, index.shape)
                    for of in (self.y, self.domain)
                )
                yield Batch(x, y, index, domain, total=total, lead=1)
            else:
                parts = zip(self.loaders, index, x.unflatten(0, index.shape), keys, strict=True)
                yield Batch.stack(
                    [
                        loader._training(epoch, step, own, inputs, total, 0, key[share])
                        for loader, own, inputs, key in parts
                    ]
                )
