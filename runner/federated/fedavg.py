"""Federated averaging, and the rounds that every other algorithm shares."""

import math
import time
from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from runner.core import distributed, keyed
from runner.core.reach import Clock
from runner.core.schema import Count, Natural, NonNegative, OpenFraction, Positive, Range, When
from runner.engine.diagnose import REMEDIES, NonFinite
from runner.engine.replicas import Unpackable
from runner.engine.trainer import Trainer
from runner.federated import Federated
from runner.federated.clients import Clients, Updates
from runner.federated.cores import Cores, one_thread
from runner.federated.crew import Crew
from runner.federated.held import deal
from runner.federated.noise import levels
from runner.federated.partition import Kind, make
from runner.federated.probe import probe
from runner.hook import Hook
from runner.record.files import write_json
from runner.record.folder import Stopped


class FedAvg(Federated):
    """Federated averaging (McMahan et al., AISTATS 2017, arXiv:1602.05629) with a server optimizer (Reddi et al., ICLR
    2021, arXiv:2003.00295, algorithm 1), in one process.

        every client k of the round:  w_k = local training from w,   d_k = w_k - w
        d = sum_k p_k d_k,   p_k = n_k / sum n  (or 1 / K);     the server steps with -d as its gradient

    SGD with lr 1 is the plain average of the clients' weights. Local training is the run's own step: any loss,
    optimizer, sharpness method, hook and precision; a hook that changes what is evaluated, such as an average of
    weights, is the server's, once a round. Clients start every round with a fresh optimizer, and their schedule covers
    all rounds. What their hooks count and remember (the gradients and formats of AdaPT, the signs of GAQAT, the average
    of MESA) is every client's own and goes on from one of its rounds to the next, so that what takes a number of steps
    is reached over rounds; that state is held for all clients that have taken part, and is in the checkpoint. Running
    statistics of the model are averaged with p_k, memories that a loss keeps of every sample stay with the sample's
    client. What losses and hooks know of the data set, such as class counts, is of the whole training split. A client
    whose loss or weights are not finite is refused: it is said and recorded, the round goes on without it, and what it
    remembers is as before.

    `train.epochs` and `train.steps` do not apply: a round counts as one step and one epoch of the record, and
    `train.batch_size` is a client's. Every line of the record adds the norm of d, the divergence
    sqrt(sum_k p_k |d_k - d|^2) / |d|, bytes down and up, and, of the validation split, dealt to the clients in
    proportion to their own samples of each class, the accuracy of the global model on each client's part: the mean and
    the worst.

    Parameters
    ----------
    server : an optimizer over the global weights. clients : in all. rounds.
    participation : share of the clients that are drawn for a round. Default 1. The plan of all rounds is drawn from the
        seed and saved.
    local_epochs : passes over a client's samples in a round. local_steps : so many steps instead where not null.
    partition : how the training samples are dealt; see `runner.federated.partition` for the kinds and what `alpha`,
        `labels` and `sigma` are to them. minimum : samples that every client must have.
    partition_seed : of the partition. Default null: the run's seed.
    weighting : p_k by `samples`, or `uniform`.
    client_dropout : probability that a client of a round trains for nothing: its answer never comes. Default 0.
    chunk : clients that are trained side by side, at most; 1: one after another; auto: measured in the first round.

    Raises
    ------
    ValueError
        A partition that cannot be had, or several processes.
    """

    def __init__(
        self,
        server: torch.optim.Optimizer,
        clients: Count = 10,
        rounds: Count = 10,
        participation: Annotated[float, Range(0, 1, open_low=True)] = 1.0,
        local_epochs: Annotated[Count, When("local_steps", None)] = 1,
        local_steps: Count | None = None,
        partition: Kind = "iid",
        alpha: Annotated[Positive, When("partition", "dirichlet", "dirichlet_clients", "quantity")] = 0.5,
        labels: Annotated[Count, When("partition", "labels")] = 2,
        sigma: Annotated[NonNegative, When("partition", "noise")] = 0.1,
        minimum: Count = 10,
        partition_seed: Natural | None = None,
        weighting: Literal["samples", "uniform"] = "samples",
        client_dropout: OpenFraction = 0.0,
        chunk: Literal["auto"] | Count = "auto",
        seed: int = 0,
    ):
        self.server, self.count, self.rounds, self.participation = server, clients, rounds, participation
        self.local_epochs, self.local_steps = local_epochs, local_steps
        self.kind, self.alpha, self.labels, self.sigma, self.minimum = partition, alpha, labels, sigma, minimum
        self.partition_seed = seed if partition_seed is None else partition_seed
        self.weighting, self.client_dropout, self.seed = weighting, client_dropout, seed
        self.size: int | None = None if chunk == "auto" else chunk
        self.crew: Crew | None = None
        self.cores = Cores()
        (self.weights,) = server.param_groups[0]["params"]  # (P,) the global model
        self.answered: list[int] = []  # clients of the round in progress whose answer is in, or will never be
        self.refused: list[int] = []

    silences = dict.fromkeys(("train.epochs", "train.steps"), "set federated.rounds, local_epochs or local_steps")

    # ---- what an algorithm changes

    client: Hook = Hook()  # what it does in a client's steps; where it needs tensors, `brief` gives them
    traffic: tuple[float, float] = (1.0, 1.0)  # down and up, in sizes of the model

    def brief(self, hook: Hook | None, clients: list[int]) -> None:
        """Before these clients train: tell the hook what it needs of them, in rows."""

    def begin_round(self) -> None:
        """Forget the last round's answers."""
        self.total = torch.zeros((), dtype=torch.float64)
        self.mean = torch.zeros_like(self.weights.data)
        self.square = torch.zeros((), dtype=torch.float64, device=self.mean.device)
        self.averages = [torch.zeros_like(buffer, dtype=torch.float64) for buffer in self.buffers]

    def collect(self, updates: Updates) -> None:
        """Take the answers of some clients in."""
        p = self.shares(updates)
        self.total += p.sum()
        p = p.to(self.mean.device)
        self.mean += torch.mv(updates.delta.T, p.to(self.mean.dtype))
        self.square += (p * updates.delta.double().square().sum(1)).sum()
        for average, buffer in zip(self.averages, updates.buffers, strict=True):
            average += torch.tensordot(p, buffer.double(), 1)

    def direction(self) -> Tensor:
        """(P,) d: what the server adds to the weights, were its learning rate 1."""
        return self.mean / self.total.item()

    def end_round(self) -> None:
        """After the server's step."""

    def shares(self, updates: Updates) -> Tensor:
        """(K,) the clients' weights in averages, up to a factor."""
        return updates.samples if self.weighting == "samples" else torch.ones_like(updates.samples)

    # ---- the start

    def among(self, hooks: dict[str, Hook]) -> dict[str, Hook]:
        return {"client": self.client, **hooks, "federated": self}

    def start(self, run: Trainer) -> None:
        if distributed.world > 1:
            raise ValueError("clients share one process; start it without torchrun")
        if not run.loader.sampler.whole:
            raise ValueError("clients visit their own samples, each once an epoch: use sampler=shuffle or weighted")
        if run.dataset.bag_size > 1:
            raise ValueError("samples are dealt to clients one by one, which takes bags apart: set dataset.bag_size=1")
        train, val = run.dataset.train, run.dataset.val
        y = train.y.numpy()
        domain = None if train.domain is None else train.domain.numpy()
        classes = run.dataset.classes if run.dataset.task == "classes" and not run.dataset.places else None
        self.partition = make(
            self.kind,
            y,
            self.count,
            self.partition_seed,
            alpha=self.alpha,
            labels=self.labels,
            domain=domain,
            minimum=self.minimum,
            classes=classes,
        )
        rows = [torch.from_numpy(self.partition.of(client)).to(run.device) for client in range(self.count)]
        noise = torch.as_tensor(levels(self.count, self.sigma), dtype=torch.float32) if self.kind == "noise" else None
        self.clients = Clients(run, rows, self.rounds, self.local_epochs, self.local_steps, noise, self.seed)
        self.held = None if val is None or not run.guesses else deal(self.partition, train, val)
        drawn = max(1, round(self.participation * self.count))
        self.plan = [self._draw(round_, drawn) for round_ in range(self.rounds)]
        self.buffers = [buffer.clone() for buffer in self.clients.buffers]
        self.heard = False  # whether any answer was ever taken in
        self.begin_round()
        run.notices += self.clients.notices(nobodys=int((self.partition.owner < 0).sum()))
        run.steps, run.steps_per_epoch, run.unit = self.rounds, 1, "round"

    def epochs(self, run: Trainer) -> Iterator[tuple[int, int, str]]:
        own = self.clients
        for client in sorted({client for chosen, _ in self.plan for client in chosen}):
            yield own.kept[client], self.rounds * own.steps[client], f"client {client}'s"

    def _draw(self, round_: int, drawn: int) -> tuple[list[int], list[int]]:
        """The clients of a round, and those among them whose answer never comes."""
        chosen = keyed.generator(self.seed, "participation", round_).permutation(self.count)[:drawn]
        chosen.sort()
        lost = keyed.generator(self.seed, "client dropout", round_).random(drawn) < self.client_dropout
        return chosen.tolist(), chosen[lost].tolist()

    def clocks(self, run: Trainer, part) -> list[Clock]:
        if part is self or (isinstance(part, Hook) and type(part).weights is not Hook.weights):  # the server's
            return [Clock(self.rounds, 1, "rounds")]
        rounds = Counter(client for chosen, lost in self.plan for client in chosen if client not in lost)
        own = enumerate(zip(self.clients.steps, self.clients.per_epoch, strict=True))
        return [
            Clock(self.rounds * steps, per_epoch, "steps of a client", taken=rounds[client] * steps)
            for client, (steps, per_epoch) in own
        ]

    def describe(self, run: Trainer) -> str:
        left = f", {(self.partition.owner < 0).sum():,} have none" if (self.partition.owner < 0).any() else ""
        cores = self.clients.cores(len(self.plan[0][0]))
        return (
            f"{self.rounds:,} rounds of {len(self.plan[0][0]):,} of {self.count:,} clients with "
            f"{_span(self.partition.sizes)} samples ({self.kind}{left}), {_span(self.clients.steps)} local steps of "
            f"{run.train.batch_size}" + (f", on {cores} cores" if cores > 1 else "")
        )

    # ---- the rounds

    def run(self, trainer: Trainer) -> None:
        trainer.weights.copy_(self.weights.data)
        if not (trainer.folder / "partition.npz").exists():
            self.partition.save(trainer.folder, trainer.dataset.train.y.numpy(), trainer.dataset.classes)
            plan = [{"round": i + 1, "clients": chosen, "lost": lost} for i, (chosen, lost) in enumerate(self.plan)]
            write_json(trainer.folder / "participation.json", {"seed": self.seed, "rounds": plan})
        trainer.fit(lambda epoch, position: self.one_round(trainer, epoch))

    def one_round(self, trainer: Trainer, round_: int) -> Iterator[None]:
        """One round, done when it is yielded."""
        chosen, lost = self.plan[round_]
        if not self.answered:
            self.begin_round()
        present = [client for client in chosen if client not in lost]
        self.cores.count = self.clients.cores(len(chosen))
        with one_thread(self.cores.count > 1):  # here too: threads that wait for work take the cores from the processes
            self._train(trainer, present, round_)
        answers = len(chosen) - len(lost) - len(self.refused)
        report = {"clients": answers, "refused": len(self.refused)}
        if answers:
            report |= self._serve(trainer)
        else:
            trainer.tell(f"round {round_ + 1}: no client answered, the global model stays as it is")
        size = self.weights.element_size() * (trainer.weights.count + sum(buffer.numel() for buffer in self.buffers))
        report |= {
            "bytes_down": round(self.traffic[0] * size * len(chosen)),
            "bytes_up": round(self.traffic[1] * size * answers),
        }
        self._show(trainer)
        for name, hook in trainer.hooks.named.items():
            if name not in self.clients.hooks.named:
                hook.step(trainer)
        trainer.count += 1
        self.heard = self.heard or answers > 0
        if trainer.count == self.rounds and self.refused and not self.heard:
            raise NonFinite(f"in none of {self.rounds} rounds was a client's training finite: {REMEDIES}")
        if trainer.count % trainer.train.eval_every == 0 or trainer.count == self.rounds:
            report |= self._of_clients(trainer)
        trainer.report = report
        self.answered, self.refused = [], []
        yield

    def _train(self, trainer: Trainer, present: list[int], round_: int) -> None:
        """Local training of the clients that have not answered yet, and `collect`."""
        if present and self.crew is None and self.size != 1:
            if self.size is None:
                own = trainer.hooks.named["client"]
                start = self.weights.data
                self.size, line = probe(self.clients, present, round_, start, self.buffers, own, self.brief)
                trainer.tell(f"clients {line}")
            elif why := self.clients.apart():
                self.size = 1
                trainer.tell(f"clients one after another: {why}")
        try:
            for updates, clients in self._answers(trainer, present, round_, list(self.answered)):
                if updates is not None and updates.clients:
                    self.collect(updates)
                    self.clients.states |= zip(updates.clients, updates.states)
                well = [] if updates is None else updates.clients
                for client in clients:
                    if client not in well:
                        self.refused.append(client)
                self.answered += clients
                if time.perf_counter() - trainer.saved > 60 * trainer.train.save_minutes:
                    self._show(trainer)
                    trainer.save()
        except Stopped:  # the clients that have answered need not train again
            self._show(trainer)
            trainer.save()
            raise

    def _answers(
        self, trainer: Trainer, clients: list[int], round_: int, answered: list[int]
    ) -> Iterator[tuple[Updates | None, list[int]]]:
        """The updates of the clients but for those who have answered before, and of whom: who is missing is refused."""
        start, hook = self.weights.data, trainer.hooks.named["client"]
        if not clients:
            return
        most = len(self.plan[round_][0])  # the same in every round, whoever is missing
        size = min(self.size, -(-most // self.cores.count))
        if size > 1 and self.crew is None:
            try:
                self.crew = Crew(self.clients, -(-most // -(-most // size)))
            except Unpackable as why:
                size = self.size = 1
                trainer.tell(f"clients one after another: {why}")
        if size > 1:
            chunks = self.clients.chunks(clients, rows := len(self.crew.members))
        else:
            chunks = [[client] for client in clients]
        left = [chunk for chunk in ([c for c in whole if c not in answered] for whole in chunks) if chunk]

        def work(chunk: list[int]) -> tuple[Updates | None, str]:
            """The chunk's updates, and why there are none."""
            if size > 1:
                self.brief(self.crew.hooks.named["client"], [*chunk, *[chunk[-1]] * (rows - len(chunk))])
                return self.crew.answers(chunk, round_, start, self.buffers), ""
            self.brief(hook, chunk)
            try:
                return self.clients.alone(chunk[0], round_, start, self.buffers), ""
            except NonFinite as error:
                return None, str(error)

        for chunk, (updates, why) in zip(left, self.cores.each(trainer, work, left, self.clients.steps), strict=True):
            for client in chunk:
                if updates is None or client not in updates.clients:
                    why = why or "its loss or weights are not finite"
                    trainer.tell(f"round {round_ + 1}: client {client} is refused: {why}")
            yield updates, chunk

    def _serve(self, trainer: Trainer) -> dict:
        """The server's step. Returns what is recorded of the updates."""
        total = self.total.item()
        mean = self.mean / total
        size = mean.double().square().sum().item()
        spread = max(0.0, self.square.item() / total - size)
        self.weights.grad = self.direction().neg_()
        self.server.step()
        self.weights.grad = None
        for own, average in zip(self.buffers, self.averages, strict=True):
            value = average / total
            # whole numbers half up: of a range's two bounds a half would else go apart
            own.copy_(value if own.is_floating_point() else (value + 0.5).floor())
        self.end_round()
        return {"update_norm": math.sqrt(size), "divergence": math.sqrt(spread / size) if size else None}

    def _show(self, trainer: Trainer) -> None:
        """The global model in the trainer, which evaluates and saves it."""
        trainer.weights.copy_(self.weights.data)
        for own, value in zip(self.clients.buffers, self.buffers, strict=True):
            own.copy_(value)

    def _of_clients(self, trainer: Trainer) -> dict:
        """The accuracy of the global model on each client's part of the validation split."""
        if self.held is None:
            return {}
        logits, targets = trainer.predict(trainer.dataset.val)
        right = (logits.argmax(-1) == targets).double().cpu().numpy()
        found = [right[self.held == client].mean() for client in range(self.count) if (self.held == client).any()]
        return {"client_accuracy_mean": float(np.mean(found)), "client_accuracy_worst": float(min(found))}

    # ---- state

    STATE = ("total", "mean", "square", "averages")  # of the round in progress

    def state_dict(self) -> dict:
        return {
            "weights": self.weights.data,
            "buffers": self.buffers,
            "server": self.server.state_dict(),
            "size": self.size,
            "answered": self.answered,
            "refused": self.refused,
            "heard": self.heard,
            "clients": self.clients.states,
            "round": {name: getattr(self, name) for name in self.STATE},
        }

    def load_state_dict(self, state: dict) -> None:
        self.weights.data.copy_(state["weights"])
        self.buffers = [value.to(own.device) for own, value in zip(self.buffers, state["buffers"], strict=True)]
        self.server.load_state_dict(state["server"])
        self.size, self.answered, self.refused = state["size"], list(state["answered"]), list(state["refused"])
        self.clients.states, self.heard = dict(state["clients"]), state["heard"]
        for name, value in state["round"].items():
            setattr(self, name, _where(getattr(self, name), value))


def _span(values) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _where(own: Tensor | list, value: Tensor | list) -> Tensor | list:
    """What was loaded, on the device of what it replaces."""
    if isinstance(own, list):
        return [_where(a, b) for a, b in zip(own, value, strict=True)]
    return value.to(own.device)
