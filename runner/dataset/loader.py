"""From splits to batches on the device, in an order that depends on the seed and the epoch alone."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from runner.augment import Augment, Draw
from runner.core import keyed
from runner.core.batch import Batch
from runner.core.blame import blame
from runner.core.mistake import ConfigError
from runner.dataset import IGNORE, Dataset, Images, Split
from runner.sampler import Sampler, turns


class Loader:
    """Batches of a prepared data set.

    Splits that are tensors live on the device as they are (uint8 pixels) and are gathered there by index; images that
    are decoded on demand come from `workers` processes. Then, for both: augmentations on pixels, normalisation
    (x - mean) / std, augmentations on the batch. What comes out is the same for any number of workers, and from any
    step on: order, augmentation and random crops are keyed by (seed, epoch, sample index).

    Parameters
    ----------
    dataset : prepared.
    device : where batches go.
    batch_size : samples of a step, over all ranks.
    augments : in the order in which they apply, within each of the two phases.
    sampler : prepared: which samples an epoch visits, in which order. Default: all, every epoch in an order of its own.
    workers : processes that decode. Default 0: decode in this one.
    drop_last : leave out an epoch's last, smaller batch. Default False.
    channels_last : memory format of image batches. Default False.
    rank, world : this process among all. Each takes its contiguous share of every batch; shares differ by one sample at
        most. A last batch of fewer than `world` samples is left out.
    dtype : of the batches; half-precision ones are normalised in fp32. Default float32.

    Attributes
    ----------
    steps_per_epoch : 0 where there is no batch of at least `world` samples.
    """

    def __init__(
        self,
        dataset: Dataset,
        device: torch.device | str,
        batch_size: int,
        seed: int,
        augments: list[Augment] = (),
        sampler: Sampler | None = None,
        workers: int = 0,
        drop_last: bool = False,
        channels_last: bool = False,
        rank: int = 0,
        world: int = 1,
        dtype: torch.dtype = torch.float32,
    ):
        self.device, self.batch_size, self.seed, self.workers = torch.device(device), batch_size, seed, workers
        self.rank, self.world, self.dtype = rank, world, dtype
        self.pixel_augments = [a for a in augments if type(a).pixels is not Augment.pixels]
        self.batch_augments = [a for a in augments if type(a).batch is not Augment.batch]
        self.wide = dtype if dtype.itemsize >= 4 else torch.float32
        places = (-1, *[1] * (len(dataset.shape) - 1))
        self.mean = dataset.mean.to(self.device, self.wide).view(places)
        std = dataset.std.to(self.device, self.wide).view(places)
        self.scale = 1 / torch.where(std > 0, std, torch.ones_like(std))  # a constant input stays 0
        image = len(dataset.shape) == 3
        self.format = torch.channels_last if channels_last and image else torch.contiguous_format
        self.ids, self.ignores = dataset.vocabulary is not None, dataset.ignores
        self._resident = [[split, None] for split in (dataset.train, dataset.val, dataset.test)]
        self._train = self._on_device(dataset.train)
        self.views: tuple[str, ...] = ()  # what else the loss wants of a batch: see `runner.loss.Loss`
        self.draw: Callable[[Batch, Draw], Batch] | None = None
        self._workers: DataLoader | None = None
        self.drop_last = drop_last
        if sampler is None:
            sampler = Sampler()
            sampler.prepare(dataset.train, batch_size, seed, dataset.bag_size)
        self.sampler = sampler
        self.steps_per_epoch = self.steps(self.sampler.length)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The training steps of an epoch, from step `start` on."""
        return self.visit(self.order(epoch), epoch, start)

    def steps(self, samples: int) -> int:
        """Batches that an epoch of so many samples has."""
        last = not self.drop_last and samples % self.batch_size >= self.world
        return 0 if self.batch_size < self.world else samples // self.batch_size + last

    def visit(self, order: Tensor, epoch: int, start: int = 0, client: int = 0) -> Iterator[Batch]:
        """Batches of the training samples (M,) in this order, from step `start` on; of a client of a federation, whose
        batches draw for themselves what belongs to a batch."""
        steps, keys = range(start, self.steps(len(order))), self.keys(order)
        again = keys is not order
        shares = [self._share(step, len(order)) for step in steps]
        if isinstance(self._train.base, Tensor):
            for step, share in zip(steps, shares, strict=True):
                total = self._total(step, len(order))
                yield self.batch(order[share], epoch, step, client, total, keys[share] if again else None)
        else:
            rows, seeds = order.cpu(), self._item_seeds(epoch, keys.cpu())
            plan = (list(zip(rows[share].tolist(), seeds[share].tolist(), strict=True)) for share in shares)
            for step, share, x in zip(steps, shares, self._training_items(plan), strict=True):
                x = x.to(self.device, non_blocking=True)
                total = self._total(step, len(order))
                yield self._training(epoch, step, order[share], x, total, client, keys[share] if again else None)

    def batch(
        self,
        index: Tensor,
        epoch: int = 0,
        step: int = 0,
        client: int = 0,
        total: int | None = None,
        keys: Tensor | None = None,
    ) -> Batch:
        """The training samples at `index` (B,) as a batch of an epoch's step; not for images decoded on demand. total :
        of the whole batch, where this is a part of one. keys : of their random numbers, where not their index."""
        rows = self._train.rows
        x = self._train.base.index_select(0, index if rows is None else rows.index_select(0, index))
        return self._training(epoch, step, index, x, len(index) if total is None else total, client, keys)

    def order(self, epoch: int) -> Tensor:
        """The training samples that an epoch visits, in turn."""
        return self.sampler.order(epoch).to(self.device)

    def keys(self, order: Tensor) -> Tensor:
        """What random numbers of the samples in this order are keyed by: their index; one that comes again, anew."""
        return order if self.sampler.whole else order + turns(order) * len(self._train)

    def evaluate(self, split: Split, batch_size: int) -> Iterator[Batch]:
        """The samples of a split in order, without augmentation; each rank its contiguous share of the split."""
        split = self._on_device(split)
        low, high = self._part(len(split))
        slices = [slice(begin, min(begin + batch_size, high)) for begin in range(low, high, batch_size)]
        if isinstance(split.base, Tensor):
            rows = split.rows
            inputs = (split.base[w] if rows is None else split.base.index_select(0, rows[w]) for w in slices)
        else:
            plan = _Plan([(i, None) for i in range(where.start, where.stop)] for where in slices)
            workers = min(self.workers, len(slices)) if len(slices) > 1 else 0
            items = map(_whole, self._items(split.base, plan, workers))
            inputs = (x.to(self.device, non_blocking=True) for x in items)
        for where, x in zip(slices, inputs, strict=True):
            index = torch.arange(where.start, where.stop, device=self.device)
            domain = None if split.domain is None else split.domain[where]
            yield self._valid(Batch(self._normalise(x), split.y[where], index, domain))

    def _part(self, count: int) -> tuple[int, int]:
        """This rank's share of `count` samples in a row."""
        return count * self.rank // self.world, count * (self.rank + 1) // self.world

    def _total(self, step: int, samples: int) -> int:
        return min(self.batch_size, samples - step * self.batch_size)

    def _share(self, step: int, samples: int) -> slice:
        low, high = self._part(self._total(step, samples))
        return slice(step * self.batch_size + low, step * self.batch_size + high)

    def _training(
        self, epoch: int, step: int, index: Tensor, x: Tensor, total: int, client: int = 0, keys: Tensor | None = None
    ) -> Batch:
        split, draw = self._train, None
        if self.draws:
            draw = Draw(self.seed, epoch, step, index if keys is None else keys, client)
        domain = None if split.domain is None else split.domain[index]
        batch = self._valid(Batch(self._pixels(x, draw), split.y.index_select(0, index), index, domain, total=total))
        if about := self.sampler.about(epoch, step, index):
            own = {name: about.pop(name) for name in ("weight", "domain", "y") if name in about}
            batch = replace(batch, **own).put(**about)
        seen = {name: replace(batch, x=self._pixels(x, draw.of(name))) for name in self.views}
        for augment in self.batch_augments:
            batch = augment.batch(batch, draw) if augment.acts("x") else batch
            seen |= {name: augment.batch(seen[name], draw.of(name)) for name in self.views if augment.acts(name)}
        return self._told(batch.put(**{name: view.x for name, view in seen.items()}) if seen else batch, draw)

    def _valid(self, batch: Batch) -> Batch:
        """Targets that count for nothing become class 0, and "valid" says which do."""
        if not self.ignores:
            return batch
        valid = batch.y != IGNORE
        return replace(batch, y=batch.y.where(valid, 0)).put(valid=valid)

    def _told(self, batch: Batch, draw: Draw | None) -> Batch:
        return batch if self.draw is None else self.draw(batch, draw)

    @property
    def draws(self) -> bool:
        """Whether a training batch has random numbers of its own."""
        return bool(self.pixel_augments or self.batch_augments or self.views or self.draw)

    def like_training(self, batch: Batch) -> Batch:
        """A batch of `evaluate` with what else training batches have, to try things with."""
        return self._told(batch.put(**dict.fromkeys(self.views, batch.x)), Draw(self.seed, 0, 0, batch.index))

    def _pixels(self, x: Tensor, draw: Draw | None) -> Tensor:
        for augment in self.pixel_augments:
            if augment.acts(draw.view or "x"):
                x = augment.pixels(x, draw)
        return self._normalise(x)

    def _normalise(self, x: Tensor) -> Tensor:
        if self.ids:
            return x.long()
        wide = x.to(self.wide, memory_format=self.format) if x.dim() == 4 else x.to(self.wide)
        # inputs that are floats already may be a view of the data set: those are not changed in place
        centred = wide.sub(self.mean) if wide is x else wide.sub_(self.mean)
        return centred.mul_(self.scale).to(self.dtype)

    def _on_device(self, split: Split) -> Split:
        """The split with its tensors on the device; the data set's own splits are moved once and kept."""
        known = next((pair for pair in self._resident if pair[0] is split), [split, None])
        if known[1] is None:
            known[1] = split.to(self.device)
        return known[1]

    # ---- images decoded on demand

    def _item_seeds(self, epoch: int, keys: Tensor) -> Tensor:
        low, high = (keyed.uniform(self.seed, "item", epoch, keys, 2).double() * 2**24).long().unbind(1)
        return low + (high << 24)

    def _training_items(self, batches: Iterator[list]) -> Iterator[Tensor]:
        if self._workers is None:
            self._workers = self._items(self._train.base, _Plan([]), self.workers, persistent=self.workers > 0)
        self._workers.batch_sampler.batches = batches
        return map(_whole, self._workers)

    def _items(self, images: Images, plan: "_Plan", workers: int, persistent: bool = False) -> DataLoader:
        return DataLoader(
            _Items(images),
            batch_sampler=plan,
            num_workers=workers,
            collate_fn=_as_is,
            pin_memory=self.device.type == "cuda",
            persistent_workers=persistent,
            worker_init_fn=_quiet,
            generator=torch.Generator(),  # its own, so that nothing is taken from the global one
        )


class _Plan:
    """Batches of (index, seed), made while they are used; replaced for every epoch."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self) -> Iterator[list]:
        return iter(self.batches)


class _Items(torch.utils.data.Dataset):
    def __init__(self, images: Images):
        self.images = images

    def __getitems__(self, items: list[tuple[int, int | None]]) -> Tensor | str:
        try:
            return torch.stack([self.images.get(i, seed) for i, seed in items])
        except ValueError as error:  # as a line: the traceback of another process would say less
            return str(error)
        except Exception as error:
            return f"{type(self.images).__name__}: {blame(error)}"


def _as_is(x):
    return x


def _whole(x: Tensor | str) -> Tensor:
    if isinstance(x, str):
        raise ConfigError(f"dataset: {x}")
    return x


def _quiet(worker: int) -> None:
    """A worker ignores Ctrl-C, and SIGTERM where it does not come from the main process.

    A terminal and a cluster send them to every process of a job; only the main one knows what to save before the end.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_told_by, args=(os.getppid(),), daemon=True).start()


def _end_when_told_by(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
