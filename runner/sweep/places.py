"""How many workers there are, and where."""

import math
import os
from collections.abc import Iterable
from pathlib import Path

from runner.command.config import Sweep


def cores() -> int:
    """The cores that this process may use: its affinity, and the quota of its container where there is one."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(count, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max": no quota
        return count


def visible() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them. CUDA is not started."""
    import torch

    count = torch.cuda.device_count()
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(number) for number in range(count)] if listed is None else listed.split(",")
    return [name.strip() for name in names[:count]]


def leases(devices: Iterable[str], settings: Sweep, gpus: list[str], cpus: int) -> list[str | None]:
    """One entry per worker: the GPU that is its own, or None where it takes what its runs' `device` says.

    devices : what the runs ask for. Workers are dealt to the GPUs in turn, so that fewer workers still use all of them.
    """
    devices = set(devices)
    if devices & {"auto", "cuda"} and gpus:
        places: list[str | None] = list(gpus)
    elif named := {device for device in devices if device.startswith("cuda:")}:
        places = [None] * len(named)
    else:
        places = [None] * cpus
        return places if settings.jobs == "auto" else [None] * settings.jobs
    count = settings.jobs_per_gpu * len(places) if settings.jobs == "auto" else settings.jobs
    return [places[number % len(places)] for number in range(count)]


def threads(cpus: int, workers: int) -> int:
    """For each worker: its share of the cores, or less where OMP_NUM_THREADS says so."""
    said = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    share = max(1, cpus // workers)
    return min(share, int(said)) if said.isdecimal() and int(said) else share
