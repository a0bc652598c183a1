"""How long runs would take here, and how much they would store: from finished runs, else from a few steps of one of
each kind. Nothing is written, and what was not measured is not estimated."""

import math
import shutil
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from runner.command.config import Sweep
from runner.core.mistake import ConfigError
from runner.record.files import finished, sessions
from runner.sweep.cells import Cell, counted, done
from runner.sweep.places import cores, leases, threads, visible

MOST = 4e10  # multiplications of a pass on a CPU; of a larger batch a part is measured
PART = 8  # samples of it, at least
ENOUGH = 1.0  # seconds of steps
SHORT = 30.0  # a run of fewer seconds: building it counts


@dataclass
class Found:
    """Of one run: seconds, bytes, and how that is known."""

    seconds: float
    bytes: int
    how: str


def lines(left: list[Cell], all_: list[Cell]) -> Iterator[str]:
    """What there is to say of the runs that are left, out of all of a plan.

    The sum is divided by the runs that go on at a time; that packs may be faster is left out.
    """
    from runner.core.distributed import device
    from runner.record.environment import environment
    from runner.sweep.pack import groups

    shared = set.intersection(*(set(cell.overrides) for cell in left)) if len(left) > 1 else set()

    def named(kind: list[Cell]) -> str:
        own = " ".join(word for word in kind[0].overrides if word not in shared)
        return (kind[0].row or own or str(kind[0])) + ", ..." * (len(kind) > 1)

    settings, cpus = Sweep(**left[0].config["sweep"]), cores()
    workers = len(leases((cell.config["device"] for cell in left), settings, visible(), cpus)[: len(left)])
    here = environment(left[0].config["device"])["device_name"]
    on = str(device(left[0].config["device"]))
    known, seconds, size, longest = [], 0.0, 0, 0.0
    todo = {cell.folder for cell in left}
    with _threads(threads(cpus, workers)):
        for kind in groups(all_):
            own = [cell for cell in kind if cell.folder in todo]
            if not own:
                continue
            try:
                found = _before(kind, here) or _measured(own[0])
            except Exception as error:  # what cannot be built is no plan's failure
                why = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
                known.append(f"  {len(own)} x ?  {named(own)}: no estimate: {(why.splitlines() or [''])[0]}")
                continue
            seconds, size = seconds + len(own) * found.seconds, size + len(own) * found.bytes
            longest = max(longest, found.seconds)
            known.append(f"  {len(own)} x {span(found.seconds)}  {named(own)}: {found.how}")
    if seconds:
        free = shutil.disk_usage(_existing(left[0].folder)).free
        at_once = f"{counted(workers)} at a time"
        total = span(max(seconds / workers, longest))
        yield f"estimate on {here} ({on}), {at_once}: {total}, {volume(size)} of {volume(free)} that are free"
    yield from known


def _before(kind: list[Cell], here: str) -> Found | None:
    """From runs of this kind that were finished on such a device."""
    took, sizes = [], []
    for cell in filter(done, kind):
        whose = {session.get("device_name") for session in sessions(cell.folder)}
        try:
            result = finished(cell.folder)
        except ValueError:
            continue
        if whose == {here} and result.get("seconds"):
            took.append(result["seconds"])
            sizes.append(sum(path.stat().st_size for path in cell.folder.rglob("*") if path.is_file()))
    if not took:
        return None
    return Found(statistics.median(took), round(statistics.median(sizes)), f"as {counted(len(took))} before")


def _measured(cell: Cell) -> Found:
    """From a few steps of this run and a part of an evaluation."""
    from runner.core.work import multiplications
    from runner.engine.run import Job

    job = Job(cell.config, cell.overrides)
    if "federated" in job.trainer.hooks.named:
        raise ConfigError("a federation, and none of its kind has been finished here")
    job.resume()
    run = job.trainer
    left = run.steps - run.count
    splits = [split for split in (run.dataset.val, run.dataset.test) if split is not None]
    samples = sum(map(len, splits))
    stored = _bytes(run.state_dict()) + len(splits) * _bytes(run.shown()) + (1 << 19)  # and what is drawn
    batch = next(run.loader.epoch(run.count // run.steps_per_epoch))
    one, whole = 0, len(batch)
    if run.device.type == "cpu":
        run.model.eval()
        one = multiplications(run.model, batch.x) if batch.x.is_floating_point() else 0
    part = min(whole, max(PART, int(MOST / one))) if one else whole
    if part < whole:
        batch = batch.select(slice(0, part))
        batch.total = part
    run.model.train()
    step = _time(lambda: run.step(batch), run) * whole / part
    some = splits[0].select(_first(min(len(splits[0]), max(PART, int(MOST / one)) if one else 1000)))
    look = _time(lambda: run.evaluate(some), run, 1) / len(some) * samples
    epochs = math.ceil(left / run.steps_per_epoch)
    looks = -(-epochs // run.train.eval_every) + 2  # and what is measured once, at the end
    seconds = left * step + looks * look
    if seconds < SHORT:
        begun = time.perf_counter()
        Job(cell.config, cell.overrides)
        seconds += time.perf_counter() - begun
    of = f" from {part} of its {whole} samples" if part < whole else ""
    return Found(seconds, stored, f"{left:,} steps of {span(step)}{of}, {looks} evaluations of {span(look)}, measured")


def _first(count: int):
    import torch

    return torch.arange(count)


def _time(what, run, fewest: int = 2) -> float:
    """The median of some calls after the first, which is left out where there are others."""
    import torch

    found: list[float] = []
    while len(found) <= fewest or (sum(found) < ENOUGH and len(found) < 50):
        begun = time.perf_counter()
        what()
        if run.device.type == "cuda":
            torch.cuda.synchronize(run.device)
        found.append(time.perf_counter() - begun)
        if len(found) > 1 and sum(found) > 20 * ENOUGH:
            break
    run.recent.clear()
    return statistics.median(found[1:])


def _bytes(node) -> int:
    """Of all tensors in a state."""
    import torch

    if isinstance(node, torch.Tensor):
        return node.nbytes
    if isinstance(node, dict):
        return sum(map(_bytes, node.values()))
    return sum(map(_bytes, node)) if isinstance(node, list | tuple) else 0


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """As many as a worker of the pool would have."""
    import torch

    from runner.core import threads as own

    before = torch.get_num_threads()
    own.allow(count)
    try:
        yield
    finally:
        own.allow(before)


def _existing(path: Path) -> Path:
    return next(one for one in (path, *path.parents) if one.exists())


def span(seconds: float) -> str:
    """A time as people say it, in two digits."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60), ("s", 1), ("ms", 1e-3)):
        if seconds >= (2 if unit == "days" else 1) * size or unit == "ms":
            return f"{_two(seconds / size)} {unit}"


def _two(value: float) -> str:
    """Two significant digits, and all those before the point."""
    return f"{value:,.0f}" if value >= 9.95 else f"{value:.1f}" if value >= 0.095 else f"{value:.2g}"


def volume(count: float) -> str:
    for unit, size in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size or unit == "KiB":
            return f"{_two(count / size)} {unit}"
