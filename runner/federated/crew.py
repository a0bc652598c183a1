"""Clients side by side, as replicas."""

import copy
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from runner import optim
from runner.core import keyed
from runner.core.batch import Batch
from runner.core.dropout import Masks
from runner.core.weights import Weights
from runner.engine.replicas import Replicas
from runner.engine.trainer import Trainer
from runner.federated.clients import Clients, Updates
from runner.hook import Hooks
from runner.record.folder import Stopped


class Crew(Replicas):
    """K rows on which clients are trained side by side."""

    def __init__(self, clients: Clients, count: int):
        self.clients = clients
        run = clients.run
        super().__init__([twin(run, clients.hooks) for _ in range(count)], loader=run.loader)
        self.fresh = [dict(group) for group in self.optimizer.param_groups]
        self.rest = [self.values[name] for name, _ in self.parts.named_buffers()]  # nothing here remembers samples

    def begin(self, start: Tensor, buffers: list[Tensor]) -> None:
        self.weights.data.copy_(start)
        for own, value in zip(self.rest, buffers, strict=True):
            own.copy_(value)
        self.optimizer.state.clear()
        for group, fresh in zip(self.optimizer.param_groups, self.fresh, strict=True):
            group.update(fresh)
        self.loss_sum.zero_(), self.correct.zero_()
        self.seen = np.zeros(len(self.members), dtype=int)
        self.well = torch.ones(len(self.members), dtype=torch.bool, device=self.device)
        self.model.train()

    def advance(self, batch: Batch, factors: np.ndarray, real: np.ndarray) -> None:
        """One step. factors : of every client's learning rate. real : samples that count, 0 for a client at its end."""
        self.factor = factors[0].item() if (factors == factors[0]).all() else torch.from_numpy(factors).to(self.device)
        self.real = real
        self.step(batch)

    def set_lr(self) -> None:
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * self.factor

    def look(self, batch: Batch | None = None) -> None:
        self.recent.clear()

    def take(self, first, batch: Batch, samples: int) -> None:
        real = torch.from_numpy(self.real).to(self.device)
        self.seen += self.real
        self.well &= torch.isfinite(first.loss) | (real == 0)
        self.loss_sum += torch.where(real > 0, first.loss * real, 0.0)
        if self.guesses:
            target = batch.y if batch.y.dim() == 2 else batch.y.argmax(-1)
            right = first.out.logits.argmax(-1) == target
            if batch.mask is not None:
                right &= batch.mask
            self.correct += right.sum(-1) * (real > 0)

    def answers(self, chosen: list[int], round_: int, start: Tensor, buffers, limit: int | None = None) -> Updates:
        """Local training of at most as many clients as there are rows; see `Clients.alone`. A client whose loss or
        weights are not finite is left out: rows do not touch each other."""
        clients = self.clients
        rows = [*chosen, *[chosen[-1]] * (len(self.members) - len(chosen))]  # rows too many repeat the last client
        counts = np.minimum([clients.steps[client] for client in rows], limit or clients.steps[chosen[0]])
        own = [(clients.steps[client], clients.per_epoch[client]) for client in rows]
        positions = [(round_ * n, clients.rounds * n, m) for n, m in own]
        seeds = [keyed.of_client(clients.seed_of_one, client) for client in rows]
        for member, seed in zip(self.members, seeds, strict=True):
            member.masks.seeds = [seed]
        self.masks.seeds = seeds
        self.begin(start, buffers)
        ends, finals = self.weights.data.clone(), [buffer.clone() for buffer in self.rest]
        rates = np.zeros(len(rows))
        for step, (batch, real) in enumerate(self._side_by_side(rows, round_, counts.max())):
            factors = np.array([clients.run.schedule(first + step, *rest) for first, *rest in positions])
            self.count, self.steps, self.steps_per_epoch = positions[0][0] + step, *positions[0][1:]
            self.advance(batch, factors, real * (step < counts))
            rates += factors * (step < counts)
            if len(done := (counts == step + 1).nonzero()[0]):
                ends[done] = self.weights.data[done]
                for final, buffer in zip(finals, self.rest, strict=True):
                    final[done] = buffer[done]
            if clients.run.stop:
                raise Stopped(clients.run.stop)
        for group, base in zip(clients.run.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * factors[0].item()  # for the record
        well = (self.well & torch.isfinite(ends).all(1))[: len(chosen)].nonzero().flatten().tolist()
        clients.run.loss_sum += self.loss_sum[well].sum()
        clients.run.correct += self.correct[well].sum()
        clients.run.samples += int(self.seen[well].sum())
        sizes = np.array([len(clients.rows[client]) for client in rows])
        numbers = (torch.tensor(value, dtype=torch.float64) for value in (sizes, counts, rates * self.base_lrs[0]))
        return Updates(rows, *numbers, ends - start, finals).select(well)

    def _side_by_side(self, rows: list[int], round_: int, steps: int) -> Iterator[tuple[Batch, np.ndarray]]:
        """Steps as (K, B, ...) batches, and how many samples of each are real: smaller ones repeat their own.

        A client that has done its steps goes on with its last batch; nobody looks at the result.
        """
        loader = self.clients.run.loader
        plans = [self._plan(client, round_, steps) for client in rows]
        real = np.array([[len(index) for *_, index in plan] for plan in plans])
        index = torch.zeros(len(rows), steps, real.max(), dtype=torch.int64, device=loader.device)
        for own, plan in zip(index, plans, strict=True):
            for row, (*_, samples) in zip(own, plan, strict=True):
                row[: len(samples)] = samples
                row[len(samples) :] = samples[0]
        for step in range(steps):
            width = real[:, step].max()
            now = index[:, step, :width]
            if loader.draws:
                batches = [
                    loader.batch(samples, *at, client)
                    for client, (*at, samples) in zip(rows, (plan[step] for plan in plans), strict=True)
                ]
                fill = torch.arange(width, device=loader.device)
                batch = Batch.stack([own.select(fill.where(fill < len(own), 0)) for own in batches])
            else:
                flat = loader.batch(now.flatten())
                batch = flat.each(lambda value, shape=now.shape: value.unflatten(0, shape), lead=1)
            if real[:, step].min() < width:
                counts = torch.from_numpy(real[:, step]).to(loader.device)
                batch.mask = torch.arange(width, device=loader.device) < counts.unsqueeze(1)
            batch.total = 0
            yield self.clients.noisy(batch, rows), real[:, step]

    def _plan(self, client: int, round_: int, steps: int) -> list[tuple[int, int, Tensor]]:
        """(epoch, step of it, samples) for the first steps of a round; the last one again where there are fewer."""
        clients = self.clients
        own, per_epoch, size = clients.steps[client], clients.per_epoch[client], clients.run.loader.batch_size
        found = []
        for count in range(round_ * own, round_ * own + min(own, steps)):
            epoch, position = divmod(count, per_epoch)
            if not found or position == 0:
                order = clients.order(client, epoch)
            found.append((epoch, position, order[position * size : (position + 1) * size]))
        return found + found[-1:] * (steps - len(found))


def twin(run: Trainer, hooks: Hooks) -> Trainer:
    """A trainer like this one, with these hooks and with weights, buffers and an optimizer's state of its own.

    Of dropout it has the other's masks: to be used for replicas of models without. The optimizer is a flat one.
    """
    model, loss, risk = copy.deepcopy((run.model, run.loss, run.risk))
    weights = Weights(model, loss, risk, keys=run.weights.keys)
    optimizer = optim.twin(run.optimizer)
    groups = zip(run.optimizer.param_groups, run.base_lrs, weights.slices, strict=True)
    optimizer.param_groups = [{**group, "lr": lr, "params": [own]} for group, lr, own in groups]
    twin = Trainer(
        dataset=run.dataset,
        loader=run.loader,
        model=model,
        loss=loss,
        risk=risk,
        weights=weights,
        optimizer=optimizer,
        schedule=run.schedule,
        sharpness=copy.copy(run.sharpness),
        hooks=Hooks({name: copy.copy(hook) for name, hook in hooks.named.items()}),
        precision=run.precision,
        masks=Masks(list(run.masks.seeds)),
        train=run.train,
        device=run.device,
        record=run.record,
    )
    twin.closure, twin.balance = run.closure, run.balance
    return twin
