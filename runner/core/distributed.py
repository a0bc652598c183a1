"""Several processes as one run, started by torchrun; with one process every function here does nothing."""

import atexit
import os
import sys
from typing import Any

import torch
from torch import Tensor

rank = int(os.environ.get("RANK", 0))
world = int(os.environ.get("WORLD_SIZE", 1))


def device(name: str) -> torch.device:
    """`auto`: this process's GPU where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    return torch.device(name)


def start() -> None:
    """Join the other processes. gloo carries objects and CPU tensors, NCCL the GPUs' tensors."""
    if world > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


def stop() -> None:
    if world > 1 and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def leave(status: int) -> None:
    """End this process now, after what was registered for its end.

    torch's threads outlive the group: about one process in fifty aborts while the interpreter takes itself apart
    ("terminate called without an active exception"), and torchrun then calls a finished run a failure.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(status)


def from_first(value: Any) -> Any:
    """The first process's object, in every process."""
    if world == 1:
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def all_of(value: Any) -> list:
    """Every process's object, in the order of ranks."""
    if world == 1:
        return [value]
    found: list = [None] * world
    torch.distributed.all_gather_object(found, value)
    return found


def sum_(tensor: Tensor) -> Tensor:
    """The sum over processes, in place."""
    if world > 1:
        torch.distributed.all_reduce(tensor)
    return tensor


def any_of(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in some process."""
    if world == 1:
        return flag
    return bool(sum_(torch.tensor(float(flag), device=device)).item() > 0)
