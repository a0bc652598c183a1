"""The clients of a round: trained one after another in the run's own trainer, or side by side as replicas."""

import copy
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from runner.core import checkpoint, keyed, padding, threads
from runner.core.batch import Batch
from runner.core.dropout import Dropout
from runner.engine.diagnose import NonFinite
from runner.engine.packable import refuse
from runner.engine.parts import refusal
from runner.engine.replicas import Unpackable
from runner.engine.trainer import Trainer
from runner.federated.noise import feature_noise
from runner.hook import Hook, Hooks
from runner.loss import Loss
from runner.record.folder import Stopped
from runner.risk import Risk


@dataclass
class Updates:
    """What K clients send after their local training."""

    clients: list[int]
    samples: Tensor  # (K,) float64: their training samples
    steps: Tensor  # (K,) float64: local steps taken, without those that fp16 skipped
    rates: Tensor  # (K,) float64: the sum of their steps' learning rates
    delta: Tensor  # (K, P): their weights less the server's
    buffers: list[Tensor]  # (K, ...) each: running statistics and the like, see `Clients.buffers`
    states: list[dict] = field(default_factory=list)  # of their hooks, by name, where these have any

    def select(self, keep: list[int]) -> "Updates":
        names = ("samples", "steps", "rates", "delta")
        rest = {name: getattr(self, name)[keep] for name in names}
        states = [self.states[k] for k in keep] if self.states else []
        return Updates([self.clients[k] for k in keep], **rest, buffers=[b[keep] for b in self.buffers], states=states)


class Clients:
    """Local training from the server's weights.

    A client starts a round with a fresh optimizer. What its hooks have counted and remembered is its own and goes on in
    the next round that it takes part in (`states`), as what it was when a round that it did not end began; a hook that
    remembers samples is shared, as each of them has one client, and one that changes what is evaluated is the server's.
    Its schedule is that of a run of its own over all rounds; an epoch's order is that of the plain run's epoch, of
    which every client takes its own samples. So one client with all the data does what the plain run does. A last batch
    of one sample is left out where the model cannot take one, see `runner.engine.parts`.

    Parameters
    ----------
    run : the trainer, built and not begun. Its loss's memories of samples are shared: every sample has one client.
    rows : for every client the training samples that are its own, (n,) int64.
    rounds : of the whole run. epochs, steps : of a client in a round; steps win where not None.
    levels : (clients,) standard deviation of the feature noise, or None: as a share of the data set's range of raw
        inputs, so of pixels in [0, 1], or of the normalised inputs where it declares no range.
    seed : the run's.

    Raises
    ------
    ValueError
        A client whose samples make no batch.
    """

    def __init__(
        self, run: Trainer, rows: list[Tensor], rounds: int, epochs: int, steps: int | None, levels, seed: int
    ):
        self.run, self.rows, self.rounds, self.seed = run, rows, rounds, seed
        self.levels = levels
        size = run.loader.batch_size
        ones = [] if run.loader.drop_last else [client for client, own in enumerate(rows) if len(own) % size == 1]
        first = run.dataset.train.select(torch.arange(1))
        self.short = ones if ones and refusal(run, next(iter(run.loader.evaluate(first, 1)))) else []
        self.kept = [len(own) - (client in self.short) for client, own in enumerate(rows)]
        self.per_epoch = [run.loader.steps(kept) for kept in self.kept]
        for client, count in enumerate(self.per_epoch):
            if not count:
                raise ValueError(
                    f"client {client} has {len(rows[client])} sample(s), too few for a batch; raise federated.minimum"
                    + (" or set train.drop_last=false" if run.loader.drop_last else "")
                )
        self.steps = [steps or epochs * count for count in self.per_epoch]
        self.total = len(run.dataset.train)
        parts = ((run.loss, Loss), (run.risk, Risk))
        noting = [part for part, base in parts if type(part).observe is not base.observe]
        self.memories = [b for part in noting for b in part.buffers() if b.dim() and b.shape[0] == self.total]
        memories = set(map(id, self.memories))  # of every sample; what else is not trained the server averages
        self.buffers = [b for m in (run.model, run.loss, run.risk) for b in m.buffers() if id(b) not in memories]
        named = run.hooks.named
        self.hooks = Hooks({n: h for n, h in named.items() if type(h).weights is Hook.weights and n != "federated"})
        self.user = {name: hook for name, hook in self.hooks.named.items() if name != "client"}
        self.shared = {n: h for n, h in self.user.items() if type(h).observe is not Hook.observe}  # remember samples
        counting = {n: h for n, h in self.user.items() if type(h).state_dict is not Hook.state_dict}
        self.fresh = {n: copy.deepcopy(h.state_dict()) for n, h in counting.items() if n not in self.shared}
        self.states: dict[int, dict[str, dict]] = {}  # of a client's hooks, by name, after its last round
        self.optimizer = copy.deepcopy(run.optimizer.state_dict())  # fresh
        self.seed_of_one = run.masks.seeds[0]
        self._ranks: dict[int, Tensor] = {}

    def notices(self, nobodys: int) -> list[str]:
        """What has no effect here. nobodys : training samples that no client has."""
        lines, named = [], self.run.hooks.named
        for name in [name for name in named if name not in self.hooks.named and name != "federated"]:
            kind, methods = type(named[name]), ("batch", "loss", "observe", "gradient")
            if silent := [method for method in methods if getattr(kind, method) is not getattr(Hook, method)]:
                lines.append(
                    f"hook={name} changes what is evaluated and so is the server's: clients do not call its "
                    + " and ".join(silent)
                )
        if nobodys and (self.memories or self.shared):
            lines.append(
                f"{nobodys:,} samples belong to no client: what is remembered of every sample never has theirs"
            )
        if self.short:
            lines.append(
                f"{len(self.short):,} clients leave out the last sample of every epoch: the model cannot take it alone"
            )
        return lines

    # ---- data

    def order(self, client: int, epoch: int) -> Tensor:
        """The client's samples in the order of the plain run's epoch."""
        if epoch not in self._ranks:
            if len(self._ranks) > 64:
                self._ranks.clear()
            order = self.run.loader.order(epoch)
            self._ranks[epoch] = torch.empty_like(order).scatter_(
                0, order, torch.arange(self.total, device=order.device)
            )
        own = self.rows[client]
        return own[self._ranks[epoch][own].argsort()][: self.kept[client]]

    def batches(self, client: int, first: int, steps: int) -> Iterator[Batch]:
        """The client's batches from its step `first` on, over all rounds."""
        done = 0
        while done < steps:
            epoch, position = divmod(first + done, self.per_epoch[client])
            for batch in self.run.loader.visit(self.order(client, epoch), epoch, position, client):
                yield self.noisy(batch, [client])
                done += 1
                if done == steps:
                    return

    def noisy(self, batch: Batch, clients: list[int]) -> Batch:
        """The batch with its clients' feature noise, where the partition has it."""
        if self.levels is None:
            return batch
        level = self.levels[clients].to(batch.x.device)
        x = batch.x.flatten(0, batch.lead)
        per_sample = level.repeat_interleave(len(x) // len(clients))
        scale, bounds = self.run.loader.scale, self.run.dataset.bounds
        scale = torch.ones_like(scale) if bounds is None else (bounds[1] - bounds[0]) * scale
        x = feature_noise(x, per_sample, scale, self.seed, batch.index.flatten())
        batch.x = x.view(batch.x.shape)
        return batch

    # ---- one after another

    def alone(self, client: int, round_: int, start: Tensor, buffers: list[Tensor], limit=None) -> Updates:
        """One client's local training in the run's own trainer.

        start : (P,) the server's weights, and `buffers` its buffers. limit : only so many steps. Raises NonFinite, or
        Stopped after the present step.
        """
        run, steps, scale = self.run, self.steps[client], self.run.precision.scale
        put_back = self._undoing()
        run.weights.copy_(start)
        self._begin_hooks(client, buffers)
        run.optimizer.load_state_dict(self.optimizer)  # also of what it counts beside its state
        run.masks.seeds = [keyed.of_client(self.seed_of_one, client)]
        run.count, run.steps, run.steps_per_epoch = round_ * steps, self.rounds * steps, self.per_epoch[client]
        sums, rate, taken = (run.loss_sum.clone(), run.correct.clone(), run.samples), 0.0, 0
        run.loss_sum.zero_(), run.correct.zero_()
        hooks, run.hooks = run.hooks, self.hooks
        if len(self.rows) > 1:  # what third-party code draws is the client's own, in whichever process
            run.draws.seed(int(keyed.generator(self.seed, "client", client, round_).integers(2**62)))
        try:
            for batch in self.batches(client, run.count, min(steps, limit or steps)):
                skipped = scale.skipped if scale else 0
                run.step(batch)
                if not scale or scale.skipped == skipped:
                    rate += run.optimizer.param_groups[0]["lr"]
                    taken += 1
                if run.stop:
                    raise Stopped(run.stop)
            run.look()
            delta = run.weights.data - start
            if not torch.isfinite(delta).all():
                raise NonFinite("its weights are not finite")
            run.loss_sum += sums[0]
            run.correct += sums[1]
        except BaseException:
            run.loss_sum.copy_(sums[0]), run.correct.copy_(sums[1])
            run.samples = sums[2]
            run.recent.clear()
            put_back()
            raise
        finally:
            run.hooks = hooks
            run.count, run.steps, run.steps_per_epoch = round_, self.rounds, 1
            run.masks.seeds = [self.seed_of_one]
        return Updates(
            [client],
            *(torch.tensor([float(value)], dtype=torch.float64) for value in (len(self.rows[client]), taken, rate)),
            delta.unsqueeze(0),
            [buffer.unsqueeze(0).clone() for buffer in self.buffers],
            [{name: copy.deepcopy(self.user[name].state_dict()) for name in self.fresh}] if self.fresh else [],
        )

    def _begin_hooks(self, client: int, buffers: list[Tensor]) -> None:
        """Put the server's buffers in place, and the client's hooks where its last round left them; in its first round
        they begin from the server's weights and buffers, as they do in a run."""
        run, own = self.run, self.states.get(client)
        for name, state in self.fresh.items():
            self.user[name].load_state_dict(copy.deepcopy(state))
        for buffer, value in zip(self.buffers, buffers, strict=True):
            buffer.copy_(value)
        notices, run.notices = run.notices, []  # were said when the run began
        for name in self.fresh:
            self.user[name].start(run)
            if own is not None:
                self.user[name].load_state_dict(copy.deepcopy(own[name]))
        run.notices = notices

    def _undoing(self) -> Callable[[], None]:
        """What undoes the steps of a client that does not end its round: what they changed for others, and for itself
        when it trains once more. That is memories of samples, the loss scale and the global generators."""
        run, memories = self.run, [memory.clone() for memory in self.memories]
        shared = {name: copy.deepcopy(hook.state_dict()) for name, hook in self.shared.items()}
        scale, random = run.precision.scale and run.precision.scale.state_dict(), checkpoint.random_states()

        def put_back() -> None:
            for memory, kept in zip(self.memories, memories, strict=True):
                memory.copy_(kept)
            for name, state in shared.items():
                self.user[name].load_state_dict(state)
            if scale:
                run.precision.scale.load_state_dict(scale)
            checkpoint.restore_random_states(random)

        return put_back

    # ---- whether side by side, or on several cores

    def apart(self) -> str | None:
        """Why these clients must be trained one after another, or None where they need not be."""
        run = self.run
        try:
            refuse(run)
        except Unpackable as why:
            return str(why)
        for part, base in ((run.loss, Loss), (run.risk, Risk)):
            if type(part).observe is not base.observe:
                return f"{type(part).__name__} remembers what it has seen"
        if any(isinstance(module, Dropout) for module in run.model.modules()):
            return "the model has dropout"
        if getattr(run.loss, "masks", None) is not None:
            return f"{type(run.loss).__name__} draws random numbers"
        if run.train.accumulate > 1 or run.sharpness.m is not None:
            return "train.accumulate" if run.train.accumulate > 1 else "sharpness.m"
        for name, hook in self.hooks.named.items():
            own = {
                method
                for method in ("batch", "observe", "gradient", "step", "loss")
                if getattr(type(hook), method) is not getattr(Hook, method)
            }
            if own & {"batch", "observe"} or (own & {"gradient", "step"} and not hook.replicas) or name in self.fresh:
                return f"hook={name} is not made for replicas" if name in self.user else "the algorithm's own step"
            if "loss" in own and not hook.padding and self.uneven:
                return f"hook={name} does not leave out the samples that fill up a smaller batch"
        if self.uneven:
            for part in (run.loss, run.risk):
                if not part.padding:
                    return f"{type(part).__name__} does not leave out the samples that fill up a smaller batch"
            return padding.reason(run.norms)
        return None

    @property
    def uneven(self) -> bool:
        """Whether some batch is smaller than others."""
        size = self.run.loader.batch_size
        return any(kept % size for kept in self.kept) and not self.run.loader.drop_last

    def chunks(self, clients: list[int], size: int) -> list[list[int]]:
        """Parts of about equal length, of clients of similar size, largest first; where there are hooks of the user's,
        which may count steps and epochs, clients of a part have equally many."""
        found: dict[tuple, list[int]] = defaultdict(list)
        for client in sorted(clients, key=lambda client: (-self.steps[client], -self.kept[client], client)):
            found[(self.steps[client], self.per_epoch[client]) if self.user else ()].append(client)
        parts = []
        for same in found.values():
            count = -(-len(same) // size)
            parts += [same[len(same) * i // count : len(same) * (i + 1) // count] for i in range(count)]
        return parts

    def cores(self, clients: int) -> int:
        """Processes that may train so many clients at once: as many as the run may have threads, or one where a client
        leaves more behind than its answer, or where most cores would have none."""
        run, limit = self.run, threads.most(self.run.train.threads)
        alone = (
            sys.platform != "linux"
            or torch.accelerator.is_available()  # autograd's threads for it would not survive the fork
            or run.train.compile
            or run.precision.scale is not None
            or not isinstance(run.loader._train.base, Tensor)
            or any(type(p).observe is not base.observe for p, base in ((run.loss, Loss), (run.risk, Risk)))
            or self.shared
            or 2 * clients <= limit
        )
        return 1 if alone else min(limit, clients)
