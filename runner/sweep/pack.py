"""Packing: runs that differ in numbers alone, trained side by side in one process where that is faster."""

import copy
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext, suppress
from itertools import islice
from pathlib import Path

import torch

from runner.core import checkpoint
from runner.engine.diagnose import NonFinite
from runner.engine.packable import refuse, tolerance
from runner.engine.replicas import Broken, Replicas, Unpackable
from runner.engine.run import Interrupted, Job, run, signals
from runner.engine.trainer import Trainer
from runner.record.folder import InUse, Stopped
from runner.sweep.cells import Cell, done
from runner.sweep.decision import Decision
from runner.sweep.elsewhere import in_use
from runner.sweep.kind import structure
from runner.sweep.progress import counting

__all__ = ["Unpackable", "groups", "together"]

WORTH = 1.1  # times the speed of one after another, below which a pack is not worth its risk
TRIAL = 0.1  # seconds that either way of training is measured for, at least two steps
STEPS = 2  # steps after which both ways must have come to the same weights
SHARE = 0.25  # of the free memory that one pack may take


# ---- which runs may go together


def groups(cells: list[Cell]) -> list[list[Cell]]:
    """The cells in the order given, those together that differ in nothing but their seed and numbers of type float."""
    found: dict[str, list[Cell]] = {}
    for cell in counting(cells, len(cells), "compared"):
        found.setdefault(json.dumps(structure(cell.config), sort_keys=True), []).append(cell)
    return list(found.values())


# ---- training them


def together(
    cells: list[Cell],
    pack: str | int,
    say: Callable[[str], None],
    ended: Callable[[Cell, str, str], None],
) -> None:
    """Train the cells side by side in this process, each with its own folder, as `runner.engine.run.run` would one of
    them.

    pack: "auto", or any number: train them so even where it is slower. say: prints a line. ended(cell, status,
    message) is called once for each cell that is "done", "failed", or "elsewhere": another process is at it.

    Raises
    ------
    Unpackable
        Before any run is written to; with "auto" also where a measurement, made once for a kind of run and kept
        (`runner.sweep.decision`), says that it would not be faster. Where it only
        turns out later, the runs can go on one by one from their last save.
    Stopped
        After SIGINT or SIGTERM, with every cell's state saved.
    """
    counts = {cell.folder: _count(cell.folder / "last.pt") for cell in cells}
    for folder in (folder for folder, count in counts.items() if count < max(counts.values())):
        if (folder / "last.pt.tmp").exists() and _caught_up(folder, max(counts.values())):
            counts[folder] = max(counts.values())
    if len(set(counts.values())) > 1:
        raise Unpackable("some of the runs were begun before, and are at another step")
    first = _job(cells[0])
    refuse(first.trainer)
    if "federated" in first.trainer.hooks.named:
        raise Unpackable("a federation: its clients are what is trained side by side")
    most = max(3, min(int(SHARE * _free(first.trainer.device) / _footprint(first.trainer)), _files() // 4))
    parts = -(-len(cells) // most)
    for number in range(parts):
        part = cells[len(cells) * number // parts : len(cells) * (number + 1) // parts]
        try:
            jobs = [first] if number == 0 else []
            jobs += [_job(cell) for cell in part[len(jobs) :]]
            if len(jobs) == 1:
                raise Unpackable("a single run")
            if len({job.trainer.channels_last for job in jobs}) > 1:
                raise Unpackable("train.channels_last was not the same where they began")
            for notice in dict.fromkeys(notice for job in jobs for notice in job.trainer.notices):
                say(f"note    {notice}")
            _train(list(zip(part, jobs, strict=True)), pack if number == 0 else 1, say, ended)
        except Unpackable:
            if number == 0:
                raise
            for cell in part:
                _alone_to_the_end(cell, ended)


def _count(path: Path) -> int:
    return checkpoint.load(path)["count"] if path.exists() else 0


def _caught_up(folder: Path, count: int) -> bool:
    """Whether what a crash left of a save of all of them is in place now; a run that is in use is left alone."""
    from filelock import FileLock, Timeout

    with suppress(Timeout), FileLock(folder / ".lock", timeout=0):
        return checkpoint.catch_up(folder, count)
    return False


def _job(cell: Cell) -> Job:
    job = Job(cell.config, cell.overrides)
    job.trainer.random = checkpoint.random_states()  # its own from here on: others share the process
    job.trainer.tell = lambda *_: None
    job.resume()
    return job


def _alone_to_the_end(cell: Cell, ended) -> None:
    try:
        run(cell.config, cell.overrides, say=lambda *_: None)
    except (Stopped, KeyboardInterrupt):
        raise
    except Exception as error:
        ended(cell, *_ended(error))
    else:
        ended(cell, "done", "")


def _ended(error: BaseException) -> tuple[str, str]:
    return ("elsewhere", "") if in_use(error) else ("failed", _said(error))


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _train(jobs: list[tuple[Cell, Job]], pack: str | int, say, ended) -> None:
    with Decision(jobs[0][0], jobs[0][1].trainer.device) if pack == "auto" else nullcontext() as decision:
        side = _trial([job.trainer for _, job in jobs], decision, say)
    by_trainer = {id(job.trainer): (cell, job, ExitStack()) for cell, job in jobs}
    stop = ""

    def ask(name: str) -> None:
        nonlocal stop
        stop = side.stop = name

    def fail(trainer: Trainer, error: BaseException) -> None:
        cell, _, stack = by_trainer.pop(id(trainer))
        stack.__exit__(type(error), error, error.__traceback__)
        ended(cell, *_ended(error))

    with signals(ask) as end:
        lost = {}
        for k, (cell, job) in enumerate(jobs):
            stack = by_trainer[id(job.trainer)][2]
            try:
                stack.enter_context(job.locked())
                if done(cell) or _count(cell.folder / "last.pt") != job.trainer.count:
                    stack.close()
                    raise InUse(f"{cell.folder}: another process has been at it since this one looked")
                job.record.beside = len(jobs)
                job.start()
            except Exception as error:
                lost[k] = error
        try:
            while side is not None:
                if not lost:
                    try:
                        side.fit()
                        break
                    except Broken as broken:
                        lost = broken.errors
                side = _without(side, lost, fail)
                lost = {}
                if side is not None:
                    side.stop = stop
        except BaseException as error:  # all of them stop, or what happened is nobody's own fault
            go_on = isinstance(
                error, Stopped | KeyboardInterrupt | Unpackable
            )  # later, or one by one from the last save
            for cell, _, stack in by_trainer.values():
                stack.__exit__(type(error), error, error.__traceback__)
                if not go_on:
                    ended(cell, "failed", _said(error))
            if go_on:
                raise
            return
        left = list(by_trainer.values())
        try:
            end()
            while left:
                cell, job, stack = left.pop(0)
                try:
                    with stack:
                        job.finish()
                except Exception as error:
                    ended(cell, "failed", _said(error))
                else:
                    ended(cell, "done", "")
        except Interrupted as name:
            for _, _, stack in left:
                stack.__exit__(type(name), name, name.__traceback__)
            raise Stopped(str(name)) from None


def _without(run: Replicas | Trainer, lost: dict[int, Exception], fail) -> "Replicas | _Last | None":
    """The same runs but for the lost ones, from where they are."""
    run.scatter()
    for k, error in lost.items():
        fail(run.members[k], error)
    left = [member for k, member in enumerate(run.members) if k not in lost]
    return Replicas(left) if len(left) > 1 else _Last(left[0]) if left else None


class _Last:
    """The one that is left, behind the face of `Replicas`."""

    def __init__(self, trainer: Trainer):
        self.members = [trainer]

    @property
    def stop(self) -> str:
        return self.members[0].stop

    @stop.setter
    def stop(self, name: str) -> None:
        self.members[0].stop = name

    def scatter(self) -> None: ...

    def fit(self) -> None:
        try:
            self.members[0].fit()
        except (Stopped, KeyboardInterrupt):
            raise
        except Exception as error:
            raise Broken({0: error}) from error


# ---- the trial


def _trial(trainers: list[Trainer], decision: Decision | None, say) -> Replicas:
    """Put them together; two of them are also trained alone for some steps, which must come to the same weights.

    Raises Unpackable where they do not, where the step is not made for replicas, and with a decision to make or to
    follow where it is slower.
    """
    measured = decision is not None and decision.gain is None
    if decision is not None and not measured:
        if decision.gain < WORTH:
            raise Unpackable(
                f"side by side they train at {decision.gain:.2f} times the speed of one by one (of {decision.when})"
            )
        say(f"{len(trainers)} runs side by side, as decided {decision.when}")
    ends = [trainers[0], trainers[-1]]
    try:
        alone = [_alone(trainer) for trainer in ends]
        single = _seconds(trainers[0], alone=True) if measured else None
    except NonFinite:
        raise Unpackable("a run diverges within its first steps") from None
    try:
        run = Replicas(trainers)
        before = run.snapshot()
        for batch in islice(_batches(run), STEPS):
            run.step(batch)
        for row, (start, end) in zip((run.weights.data[0], run.weights.data[-1]), alone, strict=True):
            moved, off = (end - start).double().norm(), (row - end).double().norm()
            if not off <= tolerance(run) * moved:
                raise Unpackable(f"side by side its weights differ from those alone by {(off / moved).item():.1%}")
        run.restore(before)
        if measured:
            decision.gain = gain = single * len(trainers) / _seconds(run, alone=False)
            run.restore(before)
            if gain < WORTH:
                raise Unpackable(f"{len(trainers)} side by side train at {gain:.2f} times the speed of one by one")
            say(f"{len(trainers)} runs side by side, {gain:.1f} times as fast as one by one")
    except Broken:
        raise Unpackable("a run diverges within its first steps") from None
    except (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError) as error:
        raise Unpackable(f"{_said(error):.200}") from error
    return run


def _batches(run: Trainer) -> Iterator:
    epoch, position = divmod(run.count, run.steps_per_epoch)
    yield from run.loader.epoch(epoch, position)
    yield from run.loader.epoch(epoch + 1)


def _alone(trainer: Trainer) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights before and after STEPS steps, which are then undone."""
    state, start = copy.deepcopy(trainer.state_dict()), trainer.weights.clone()
    trainer.model.train()
    for batch in islice(_batches(trainer), STEPS):
        trainer.step(batch)
    end = trainer.weights.clone()
    trainer.load_state_dict(state)
    trainer.recent.clear()
    return start, end


def _seconds(run: Trainer, alone: bool) -> float:
    """The median time of a step. One run's state is put back; that of replicas is for the caller to restore.

    On a CPU it is the processor's time: on a machine with other work a long step is interrupted, a short one is not.
    """
    clock = time.process_time if run.device.type == "cpu" else time.perf_counter
    state = copy.deepcopy(run.state_dict()) if alone else None
    start, found = run.count, []
    batch = next(_batches(run))
    while len(found) < (3 if sum(found) < 1 else 2) or (sum(found) < TRIAL and len(found) < 50):
        run.count = start
        begin = clock()
        run.step(batch)
        if run.device.type == "cuda":
            torch.cuda.synchronize(run.device)
        found.append(clock() - begin)
    run.recent.clear()
    if alone:
        run.load_state_dict(state)
    return statistics.median(found[1:])


def _footprint(trainer: Trainer) -> int:
    """Bytes that one more replica takes, roughly: twice what a pass keeps for its backward, and eight vectors."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = next(_batches(trainer))
    random = torch.get_rng_state()
    with trainer.statistics(live=False), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        trainer.objective(batch)
    torch.set_rng_state(random)
    own = trainer.weights.data.untyped_storage()
    kept.pop(own.data_ptr(), None)
    return 2 * (sum(kept.values()) + batch.x.nbytes) + 8 * own.nbytes()


def _files() -> int:
    """Files that this process may have open: a run holds its metrics and its lock, and what its loggers need."""
    try:
        import resource
    except ImportError:  # Windows: 512 for the C library, of which Python's files are not
        return 8192
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else soft


def _free(device: torch.device) -> int:
    """Bytes that can be had on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
