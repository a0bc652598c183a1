"""Several objectives in a pass: a backward pass for each, whose gradients a balance makes into one."""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from runner.balance import Balance
from runner.command.build import kinds
from runner.core import distributed, keyed
from runner.core.batch import Batch, Output
from runner.core.mistake import ConfigError
from runner.engine.closure import Closure
from runner.risk import attended, units

if TYPE_CHECKING:
    from runner.engine.trainer import Trainer


class Rows(Closure):
    """A closure whose passes make a row of gradients for every objective of `run.balance`."""

    rows: Tensor | None = None  # (.., T, P + 1): last the objectives' values, so that processes add up all at once
    counts: Tensor | None = None  # (.., T): of domains, the samples of each in what the pass is a mean over

    @staticmethod
    def minimised(run: "Trainer", seen, out: Output, batch: Batch) -> Tensor:
        """(T,)"""
        losses, flat = units(attended(run.loss(out, batch), batch), batch, run.dataset)
        return OBJECTIVES[run.balance.of](run, seen, out, batch, losses, flat)

    def __call__(self, mask: Tensor | None = None, create_graph: bool = False, **further):
        if create_graph:
            raise ConfigError(
                "sharpness: it differentiates the gradient (create_graph), and what a balance makes has no derivative: "
                "set balance=none"
            )
        self.rows = None
        if self.run.balance.of == "domains":
            if self.alone or not self.batch.total:
                self.counts = count(self.run, self.batch if mask is None else self.batch.select(mask))
            else:
                self.counts = distributed.sum_(count(self.run, self.batch))
        return super().__call__(mask, False, **further)

    def part(self, loss: Tensor, micro: Batch, share: float) -> Tensor:
        if self.counts is None:
            return super().part(loss, micro, share)
        return loss * (count(self.run, micro).to(loss) / self.counts.clamp(min=1))

    def backward(self, loss: Tensor, add: bool, create_graph: bool) -> None:
        weights = self.run.weights
        if not add:
            self.rows = weights.data.new_zeros(*loss.shape, weights.data.shape[-1] + 1)
        ones = None if self.run.ones is None else self.run.ones[..., 0]
        for t in range(loss.shape[-1]):
            last = t == loss.shape[-1] - 1
            parts = torch.autograd.grad(
                loss[..., t], weights.parameters, ones, retain_graph=not last, allow_unused=True
            )
            weights.set_grad(parts)
            self.rows[..., t, :-1] += weights.grad
        self.rows[..., -1] += loss.detach()

    def filled(self) -> Tensor:
        return self.rows

    def finish(self, total: Tensor) -> Tensor:
        """Make `weights.grad` of the rows; returns the mean of this process's part of the objectives."""
        run, present = self.run, None if self.counts is None else self.counts > 0
        seeds = run.masks.seeds
        rows = self.rows if self.rows.dim() == 3 else self.rows.unsqueeze(0)
        if present is None or bool(present.all()):
            grad = combined(run, rows, seeds)
        else:  # of the objectives that there are
            grad = torch.zeros_like(rows[:, 0, :-1])
            for k, own in enumerate(present.view(-1, present.shape[-1])):
                if own.any():
                    grad[k] = combined(run, rows[k : k + 1, own], seeds[k : k + 1])[0]
        run.weights.grad.copy_(grad.view_as(run.weights.grad))
        return total.mean(-1) if present is None else total.sum(-1) / present.sum(-1).clamp(min=1)


def combined(run: "Trainer", rows: Tensor, seeds: list[int]) -> Tensor:
    """(K, P), of rows (K, T, P + 1)."""
    rows, values, own = rows[..., :-1], rows[..., -1], run.balance.own
    count, balance = rows.shape[1], run.balance
    common = rows if own is None else rows.masked_fill(own.unsqueeze(-2), 0.0)
    gram = (common @ common.mT).double()
    well = gram.isfinite().all(-1).all(-1)  # a run that diverges does so by itself, and not in the balance
    gram = torch.where(well.view(-1, 1, 1), gram, torch.eye(count, dtype=gram.dtype, device=gram.device))
    draws = [keyed.generator(seed, "balance", run.masks.step) for seed in seeds]
    grad = balance.combine(common, gram, values, draws)
    if not isinstance(grad, Tensor) or grad.shape != common[:, 0].shape:
        found = tuple(grad.shape) if isinstance(grad, Tensor) else type(grad).__name__
        raise ConfigError(
            f"balance: {type(balance).__name__} must give a gradient of {tuple(common[:, 0].shape)} for {count} "
            f"objectives, by weights of ({len(rows)}, {count}), got {found}"
        )
    grad = grad.where(well.unsqueeze(-1), torch.nan)
    return grad if own is None else torch.where(own, rows.mean(1), grad)


# ---- the objectives


def _tasks(run: "Trainer", seen, out: Output, batch: Batch, losses: Tensor, flat: Batch) -> Tensor:
    return run.hooks.loss(seen, out, batch, torch.stack([run.risk(own, flat) for own in losses.unbind(-1)]))


def _domains(run: "Trainer", seen, out: Output, batch: Batch, losses: Tensor, flat: Batch) -> Tensor:
    values = [run.risk(losses, replace(flat, mask=mask)) for mask in members(run, flat)]
    return run.hooks.loss(seen, out, batch, torch.stack(values))


def _terms(run: "Trainer", seen, out: Output, batch: Batch, losses: Tensor, flat: Batch) -> Tensor:
    risk = run.risk(losses, flat)
    penalties = [penalty(seen, out, batch) for penalty in run.hooks.losses]
    return torch.stack([risk, *(torch.as_tensor(one, dtype=risk.dtype, device=risk.device) for one in penalties)])


OBJECTIVES = {"tasks": _tasks, "domains": _domains, "terms": _terms}


def members(run: "Trainer", batch: Batch) -> list[Tensor]:
    """Of each domain (.., B): which samples are of it and count."""
    found = [batch.domain == domain for domain in run.balance.domains]
    return found if batch.mask is None else [own & batch.mask for own in found]


def count(run: "Trainer", batch: Batch) -> Tensor:
    """(.., T): samples of each domain."""
    return torch.stack([own.sum(-1) for own in members(run, batch)], -1)


# ---- before the first step


def balanced(run: "Trainer", balance: Balance, choices: dict, example: Batch) -> None:
    """Have the run's passes balance objectives, where it has an `of`. Raises ConfigError where there are none such."""
    if balance.of is None:
        return
    name, data = f"balance={choices['balance']}", f"dataset={choices['dataset']}"
    balance.domains, balance.own = (), None
    if balance.of not in OBJECTIVES:
        raise ConfigError(f"{name}: of={balance.of!r} must be one of {', '.join(OBJECTIVES)}")
    if balance.of == "terms":
        objectives, few = 1 + len(run.hooks.losses), "no hook of this run has a penalty: choose a hook that has one"
    elif balance.of == "domains":
        domain = run.dataset.train.domain
        balance.domains = () if domain is None else tuple(domain.unique().tolist())
        objectives = len(balance.domains)
        few = f"{data} has {'no domains' if domain is None else 'one domain'}: choose a data set with several"
    else:
        objectives = len(run.dataset.tasks) if run.dataset.task == "tasks" else 1
        few = f"{data} has one target a sample: choose one with several tasks, or of=domains or of=terms"
    if objectives < 2:
        raise ConfigError(f"{name} wants several objectives, and with balance.of={balance.of} there is one: {few}")
    if balance.of != "terms" and any(True for _ in (*run.risk.parameters(), *run.risk.buffers())):
        raise ConfigError(
            f"{name} takes the risk of each of the {balance.of}, and risk={choices['risk']} keeps one state for all: "
            f"choose another, or balance.of=terms"
        )
    if balance.of == "domains" and not run.risk.padding:
        others = [option for option, kind in kinds("risk").items() if kind.padding]
        raise ConfigError(
            f"{name} takes the risk of each domain's samples, and risk={choices['risk']} cannot leave out the others: "
            f"those that can are risk={', '.join(others)}"
        )
    if balance.of == "domains" and run.loss.alike:
        raise ConfigError(
            f"{name} goes by the loss of each domain's samples, and loss={choices['loss']} has one for a whole batch"
        )
    if balance.of == "tasks":
        balance.own = heads(run, example)
    run.balance, run.closure = balance, Rows
    size = objectives * run.weights.data.nbytes
    if size > LARGE:
        run.notices.append(f"{name} keeps {objectives} gradients at once: {size / 2**30:.1f} GiB")


LARGE = 2**30


def heads(run: "Trainer", example: Batch) -> Tensor | None:
    """(P,) bool: coordinates of tensors that move the logits of one task only, found by asking autograd; None where
    there are none. What moves no logits yet, as behind a layer of zeros, is taken for shared."""
    here, forward = run.draws.where(), run.forward
    run.forward = run.model
    with run.statistics(live=False):
        logits = run.outputs(example.x).logits.float().square().sum(0).sum(-1)  # (T,)
    run.forward = forward
    run.draws.go(here)
    moves = [
        torch.stack([torch.zeros(()) if part is None else part.ne(0).any().float().cpu() for part in parts])
        for parts in (
            torch.autograd.grad(one, run.weights.parameters, retain_graph=True, allow_unused=True) for one in logits
        )
    ]
    single = torch.stack(moves).sum(0) == 1
    if not single.any():
        return None
    alone = zip(single.tolist(), run.weights.parameters, strict=True)
    marked = run.weights.flatten([torch.full_like(parameter, float(one)) for one, parameter in alone])
    return marked.detach() > 0
