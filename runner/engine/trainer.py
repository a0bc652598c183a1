"""The training loop. It names no method: everything it calls was composed from the config."""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from runner.command.config import Train
from runner.core import checkpoint, distributed
from runner.core.batch import Batch, Output, Pass
from runner.core.dropout import Draws, Masks
from runner.core.measure import rises
from runner.core.precision import Overflow, Precision
from runner.core.statistics import average, frozen
from runner.core.weights import Weights
from runner.dataset import Dataset, Split
from runner.dataset.loader import Loader
from runner.engine import diagnose, ending, evaluation, state
from runner.engine.closure import Asked, Closure, wholly
from runner.hook import Hooks
from runner.loss import Loss
from runner.optim import add_
from runner.record.folder import Record, Stopped
from runner.record.lines import row
from runner.risk import Risk, units
from runner.schedule import Schedule
from runner.sharpness import Sharpness

SAVE_EVERY, SAVE_SHARE = 1.0, 0.05  # short epochs: so many seconds between saves, which take this share of the time
CHECK_EVERY = 50  # steps between looks at the losses on a GPU, where a look waits for the device


class Trainer:
    """One run: its objects, its position, and the loop.

    Parameters
    ----------
    model, loss, risk : modules on their device; `weights` has made their parameters one vector.
    optimizer : over `weights.slices` or `weights.parameters`. schedule : multiplies its learning rates before a step.
    masks : of the model's dropout layers.
    record : the run's folder; `tell` : prints a line for the user (nothing in all processes but the first).

    `runner.engine.replicas.Replicas` is the same loop over K runs side by side: tensors have a leading axis
    there, losses are (K,), and everything in this file works on either.
    """

    unit = "epoch"  # what the record calls a line's span
    value: Tensor  # of the present step: the loss at w, this device's part of it, for hooks on the gradient
    ones: Tensor | None = None  # (K,) where there are replicas: their losses are summed for one backward
    closure, balance = Closure, None  # of several objectives: see `runner.engine.rows`
    estimate = None  # a gradient that is not backpropagation's: see `runner.engine.estimated`
    random: dict | None = None  # this run's global random states, where it shares the process with others
    origin: dict | None = None  # with `checkpoint=`: what it started from
    channels_last = False  # in which order weights.data has the weights of convolutions, and so all that is like it
    made: dict | None = None  # by what code and on what data: see `runner.record.provenance`

    def __init__(
        self,
        *,
        dataset: Dataset,
        loader: Loader,
        model: nn.Module,
        loss: Loss,
        risk: Risk,
        weights: Weights,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        sharpness: Sharpness,
        hooks: Hooks,
        precision: Precision,
        masks: Masks,
        train: Train,
        device: torch.device,
        record: Record,
        tell=print,
        progress=None,
    ):
        self.dataset, self.loader, self.device = dataset, loader, device
        self.model, self.loss, self.risk, self.weights = model, loss, risk, weights
        self.forward = torch.compile(model) if train.compile else model
        self.optimizer, self.schedule, self.sharpness, self.hooks = optimizer, schedule, sharpness, hooks
        self.precision, self.masks, self.train = precision, masks, train
        self.draws = Draws(masks, device, (*model.modules(), *loss.modules(), risk, *hooks.named.values()))
        self.record, self.tell, self.progress = record, tell, progress
        self.steps_per_epoch = loader.steps_per_epoch
        self.steps = train.steps or train.epochs * self.steps_per_epoch
        self.base_lrs = [group["lr"] for group in optimizer.param_groups]
        self.buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]  # e.g. running statistics
        self.norms = [module for module in model.modules() if getattr(module, "track_running_stats", False)]
        self.guesses = dataset.task == "classes" and loss.predicts and not dataset.places  # right ones are counted
        self.kept = ending.kept(train.keep, self.steps)  # steps after which the weights are kept
        self.count = 0  # updates so far; a step skipped for overflow counts, as its data are used up
        self.loss_sum = torch.zeros((), device=device)  # over this epoch's samples, as the next two
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        self.samples = 0
        self.best: dict[str, dict] = {}
        self.unsaved: dict[str, dict] = {}  # the best weights, until the next save
        self.seconds, self.save_cost = 0.0, 0.0
        self.tick_from_now()
        self.report: dict = {}  # what else the next epoch's line says
        self.notices = list(dataset.notices)  # lines said before the first step: what has no effect, what differs
        self.stop = ""  # set by a signal: the reason to stop after the present step
        self.recent: list[tuple[int, Tensor]] = []  # steps and losses not yet looked at
        self.unnoted: list[tuple[Pass, Batch, int]] = []  # this step's passes at w, until `note`

    # ---- the step

    @property
    def several(self) -> bool:
        """Whether the optimizer may ask for several gradients a step, and use the loss."""
        return not getattr(self.optimizer, "flat", False) or getattr(self.optimizer, "looks", False)

    def step(self, batch: Batch) -> Tensor | None:
        """One update. Returns the loss at w before it, or None where fp16 overflow skipped it."""
        self.masks.step, self.masks.forwards = self.count, 0
        batch.epoch = self.count // self.steps_per_epoch
        self.hooks.before(self)
        batch = self.hooks.batch(self, batch)
        self.set_lr()
        asked = Asked(self, batch)
        try:
            with wholly(self, batch):
                self.optimizer.step(asked)
        except Overflow:
            self.count += 1
            return None
        self.note()
        self.hooks.step(self)
        self.count += 1
        return asked.loss

    def outputs(self, x: Tensor, **given: Tensor) -> Output:
        """The model's output as the loss takes it, in a pass or for a hook that needs another."""
        with self.precision.autocast():
            out = self.forward(x, **given)
        return self.loss.head(out)

    def objective(self, batch: Batch) -> tuple[Tensor, Output]:
        """What is minimised on a (micro-)batch, penalties included, and the model's output."""
        out = self.loss.ask(self.outputs, batch)
        return self.closure.minimised(self, self, out, batch), out

    def gradient(self, batch: Batch, note: bool = True) -> Tensor:
        """Fill `weights.grad` with the sharpness method's gradient; returns the loss at w.

        note : of a step's first gradient: memories, sums and running statistics take it in.
        """
        if self.sharpness.m is None:
            first = self.sharpness(self.closure(self, batch, alone=False, live=note), self.weights)
            passes = [(first, batch, batch.total or len(batch))]
            loss = first.loss
        else:  # one perturbation for every m samples, the mean of their gradients
            passes, mean, loss, whole = [], torch.zeros_like(self.weights.grad), 0.0, self.whole(batch)
            for part in batch.split(self.sharpness.m):
                first = self.sharpness(self.closure(self, part, alone=True, live=note), self.weights)
                share = self.units(part) / whole
                add_(mean, self.weights.grad, share)
                loss = loss + first.loss * share
                passes.append((first, part, len(part)))
            self.weights.grad.copy_(distributed.sum_(mean))
        if note:
            self.recent.append((self.count, loss))
            if self.device.type == "cpu" or len(self.recent) >= CHECK_EVERY:
                self.look(batch)
            self.unnoted = passes
            if not self.several:  # else the step's further gradients are to see the same memories
                self.note()
        return loss

    @torch.no_grad()
    def note(self) -> None:
        """The passes at w go into the memories of loss, risk and hooks and this epoch's sums."""
        for first, batch, samples in self.unnoted:
            self.take(first, batch, samples)
        self.unnoted = []

    def take(self, first: Pass, batch: Batch, samples: int) -> None:
        self.observe(first.out, batch)
        self.loss_sum.add_(first.loss, alpha=samples)
        self.samples += len(batch)
        if self.guesses:
            target = batch.y if batch.y.dim() == 1 + batch.lead else batch.y.argmax(-1)
            self.correct += (first.out.logits.argmax(-1) == target).sum(-1)

    def observe(self, out: Output, batch: Batch) -> None:
        if type(self.risk).observe is not Risk.observe:  # before the loss's memories change what it gives
            self.risk.observe(*units(self.loss(out, batch), batch, self.dataset), self.count + 1, self.steps)
        self.loss.observe(out, batch)
        self.hooks.observe(self, out, batch)

    def look(self, batch: Batch | None = None) -> None:
        """Stop with a message where a loss was not finite. On the CPU that is before the weights are touched."""
        if self.precision.scale is None:  # under fp16 the step was skipped instead
            losses = [loss for _, loss in self.recent]
            values = torch.stack(losses).tolist() if len(losses) > 1 else [loss.item() for loss in losses]
            for (step, _), value in zip(self.recent, values, strict=True):
                if not math.isfinite(value):
                    raise diagnose.NonFinite(diagnose.explain(self, batch, step))
        self.recent.clear()

    def set_lr(self) -> None:
        factor = self.schedule(self.count, self.steps, self.steps_per_epoch)
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * factor

    def statistics(self, live: bool):
        """Freeze the running statistics of normalisation layers unless `live`."""
        return frozen([] if live else self.norms)

    # ---- the loop

    def updates(self, epoch: int, position: int) -> Iterator[None]:
        """An epoch's updates from the given one on, each done when it is yielded."""
        for batch in self.loader.epoch(epoch, position):
            self.step(batch)
            yield

    def fit(self, updates: Callable[[int, int], Iterator[None]] | None = None) -> None:
        """Train to the last step, evaluating, recording and saving on the way.

        updates : what stands in for `self.updates`, where an update is something else: see `runner.federated`.
        """
        self.model.train()
        self.tick_from_now()
        if not self.steps:  # only what comes after training is wanted: see `runner.engine.start`
            self.end_epoch(0.0)
            self.save()
            self.show()
        if self.count == 0 in self.kept:
            ending.keep(self)
        if ending.stalled(self):  # it had ended, and was not finished
            ending.end(self)
        while self.count < self.steps:
            epoch, position = divmod(self.count, self.steps_per_epoch)
            samples, begun = self.samples, time.perf_counter()
            for _ in (updates or self.updates)(epoch, position):
                if self.progress is not None:
                    self.progress.update()
                if self.count in self.kept:
                    ending.keep(self)
                if self.count == self.steps or self.count % self.steps_per_epoch == 0:
                    break
                if self.agreed(bool(self.stop)):
                    self.save()
                    raise Stopped(self.stop)
                if self.agreed(time.perf_counter() - self.saved > 60 * self.train.save_minutes):
                    self.save()
            rate = distributed.world * (self.samples - samples) / (time.perf_counter() - begun)
            self.end_epoch(rate)
            stop = distributed.any_of(bool(self.stop), self.device)
            pause = max(SAVE_EVERY, self.save_cost / SAVE_SHARE)
            due = distributed.any_of(time.perf_counter() - self.saved > pause, self.device)
            if stop or due or self.count == self.steps:
                begun = time.perf_counter()
                self.save()
                self.save_cost = time.perf_counter() - begun
            self.show()  # not before it is saved
            if stop and self.count < self.steps:
                raise Stopped(self.stop)

    def agreed(self, flag: bool) -> bool:
        """`flag`, and where there are several processes, whether any has it: asked every few steps, by all at once."""
        if distributed.world == 1:
            return flag
        return self.count % 10 == 0 and distributed.any_of(flag, self.device)

    def end_epoch(self, rate: float) -> None:
        """Evaluate, write the epoch's line, keep the best. What is not finite at the end is no result: NonFinite."""
        self.look()
        diagnose.check_model(self)
        epoch = math.ceil(self.count / self.steps_per_epoch)
        loss, correct, samples = distributed.sum_(self.sums()).tolist()
        self.loss_sum.zero_(), self.correct.zero_()
        self.samples = 0
        line = {"step": self.count, "epoch": epoch, "lr": self.optimizer.param_groups[0]["lr"]}
        line["train_loss"] = loss / samples if samples else float("nan")
        if self.guesses:
            line["train_accuracy"] = correct / samples if samples else float("nan")
        measured = {}
        if epoch % self.train.eval_every == 0 or self.count == self.steps:
            for name, split in (("val", self.dataset.val), ("test", self.dataset.test)):
                if split is not None:
                    measured[name] = found = self.evaluate(split)
                    line |= {f"{name}_{key}": value for key, value in found.items()}
                    self.keep_best(name, found, line)
        if self.count < self.steps and ending.stalled(self):
            ending.end(self)
        if self.count == self.steps:
            for name, found in measured.items():
                diagnose.check_measures(self, name, found)
        self.tick()
        line |= {"seconds": round(self.seconds, 3), "images_per_second": round(rate, 1)}
        if self.precision.scale is not None:
            line |= {"loss_scale": self.precision.scale.value, "skipped": self.precision.scale.skipped}
        line |= self.report
        self.last = line
        self.record.log(line)

    def show(self) -> None:
        """Tell the user the last epoch's line."""
        self.tell(row(self.last, math.ceil(self.steps / self.steps_per_epoch), self.unit))

    @torch.no_grad()
    def evaluate(self, split: Split) -> dict[str, float | None]:
        """Measures of the model, as the hooks present it, over a whole split."""
        average(self.model.buffers())
        with self.hooks.weights(self):
            return self.loss.evaluate(self, split)

    @torch.no_grad()
    def predict(self, split: Split, model: nn.Module | None = None) -> tuple[Tensor, Tensor]:
        """Logits of the model, or another, as hooks present it, in fp32, on a split in its order, and the targets."""
        average(self.model.buffers())
        with self.hooks.weights(self):
            return self.predict_as_is(split, model)

    @torch.no_grad()
    def predict_as_is(self, split: Split, model: nn.Module | None = None, of: str = "logits") -> tuple[Tensor, Tensor]:
        """The same of the model with the weights that it has; or of its `features`."""
        return evaluation.predicted(self, split, model, of)

    def scored(self, split: Split, model: nn.Module | None = None) -> dict[str, float | None]:
        """How right the predictions of the model, or of another one, are on a split, with the weights that it has."""
        return evaluation.scored(self, split, model)

    def units(self, batch: Batch) -> float | Tensor:
        """What a batch counts for: samples, or where some targets do not count, those that do, () or (K,)."""
        if "valid" not in batch.more or self.dataset.per == "sample":
            return len(batch)
        return batch.more["valid"].flatten(batch.lead).sum(-1).clamp(min=1)

    def whole(self, batch: Batch) -> float | Tensor:
        """The same of the step's whole batch, of which this is a process's share."""
        if isinstance(own := self.units(batch), int):
            return batch.total or own
        return distributed.sum_(batch.more["valid"].flatten(batch.lead).sum(-1).double()).clamp(min=1)  # some has none

    def keep_best(self, name: str, found: dict, line: dict) -> None:
        """Remember this split's best epoch so far, by its first measure or `train.best_by`, and the weights then."""
        key, best = self.train.best_by or next(iter(found)), self.best.get(name)
        value, better = found[key], 1 if rises(key) else -1
        if value is not None and math.isfinite(value) and (best is None or better * value > better * best["by"]):
            self.best[name] = {"by": value, "step": self.count, "epoch": line["epoch"]}
            if distributed.rank == 0:
                self.unsaved[name] = {**self.shown(), "step": self.count}

    def shown(self) -> dict:
        """Copies of the model's tensors and the loss's parameters as the hooks present them: what is evaluated."""
        with self.hooks.weights(self):
            model = self.model.state_dict()
            model.update((key, value.clone()) for key, value in model.items())
            loss = {key: value.detach().clone() for key, value in self.loss.named_parameters()}
        return {"model": model, "loss": loss}

    # ---- state

    def tick_from_now(self) -> None:
        """Time before this moment does not count."""
        self.clock = self.saved = time.perf_counter()

    def tick(self) -> None:
        """Add the time since the last tick to the run's seconds, which a resumed run carries on."""
        now = time.perf_counter()
        self.seconds, self.clock = self.seconds + now - self.clock, now

    def sums(self) -> Tensor:
        return torch.stack(
            [self.loss_sum.double(), self.correct.double(), self.loss_sum.new_tensor(self.samples).double()]
        )

    @property
    def folder(self) -> Path:
        return self.record.folder

    def state_dict(self) -> dict:
        return state.of(self)

    def load_state_dict(self, saved: dict) -> None:
        state.restore(self, saved)

    def save(self) -> None:
        """The best weights, then `last.pt`: the whole state, and `shown` where hooks have evaluation see other weights.
        All processes take part, the first writes."""
        self.look()
        self.tick()
        average(self.model.buffers())
        facts = {"format": checkpoint.FORMAT, "made": self.made}
        whole = facts | self.state_dict()
        if distributed.rank == 0:
            self.record.sync()  # so that the disk has the lines that the checkpoint knows of
            if self.hooks.evaluations:
                whole["shown"] = self.shown()
            for name in list(self.unsaved):
                checkpoint.save(facts | self.unsaved.pop(name), self.folder / f"best_{name}.pt")
            checkpoint.save(whole if self.random is None else checkpoint.compact(whole), self.folder / "last.pt")
        self.saved = time.perf_counter()
