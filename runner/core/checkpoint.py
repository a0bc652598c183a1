"""The whole state of a run in one file, saved atomically and restored exactly."""

import copy
import errno
import os
import random
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch

FORMAT = 1  # of what `Trainer.save` writes; files of before it was noted have none


class Damaged(ValueError):
    """A file that is no checkpoint, or none of this version: one line."""


def random_states() -> dict:
    """The global generators of torch (all devices), numpy and Python: what dropout and third-party code draw from."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    version, internal, gauss = random.getstate()
    state = {  # their numbers, some 625 apiece, as tensors: lists are pickled one number after another
        "torch": torch.get_rng_state(),
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "python": [version, torch.tensor(internal), gauss],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_random_states(state: dict) -> None:
    torch.set_rng_state(state["torch"])
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal.tolist()), gauss))
    if "cuda" in state and torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def compact(state):
    """The same state, where tensors that are a small part of their storage are copies: a file would hold all of it."""
    if isinstance(state, torch.Tensor):
        return state.clone() if 2 * state.nbytes < state.untyped_storage().nbytes() else state
    if isinstance(state, dict):
        same = copy.copy(state)  # a module's state is a dict with versions of its own
        same.update((key, compact(value)) for key, value in state.items())
        return same
    if isinstance(state, list | tuple):
        return type(state)(map(compact, state))
    return state


_held: list[tuple[Path, Path]] | None = None


@contextmanager
def at_one_step():
    """What is saved in here takes its place when all of it is written: a crash leaves runs that go side by side at one
    step, as they are only then put together again; or, while the files take their places, `catch_up` brings them there.
    """
    global _held
    _held = held = []
    keep = True
    try:
        yield
    except Exception:  # one of them could not be written: the others are whole
        raise
    except BaseException:
        keep = False
        raise
    finally:
        _held = None
        for temporary, path in held:
            os.replace(temporary, path) if keep else temporary.unlink(missing_ok=True)


def catch_up(folder: Path, count: int) -> bool:
    """Put in place what a run wrote at step `count` within `at_one_step`, where a crash came before it was renamed and
    after another's was: all had been written by then. Returns whether there was such a state."""
    written = folder / "last.pt.tmp"
    try:
        state = load(written)
    except (OSError, Damaged):
        return False
    if state.get("count") != count:
        return False
    for name, best in state["best"].items():  # the state last, as `Trainer.save` writes it
        path = folder / f"best_{name}.pt"
        with suppress(OSError, Damaged):
            if load(path.with_name(f"{path.name}.tmp")).get("step") == best["step"]:  # else it is of an earlier crash
                os.replace(f"{path}.tmp", path)
    os.replace(written, folder / "last.pt")
    return True


def save(state: dict, path: Path) -> None:
    """Write beside the old file, flush to disk, then rename over it: a crash or a full disk leaves the old one whole.

    Raises OSError with one clear line where the disk is full or the folder is not writable.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        if _held is None:
            os.replace(temporary, path)
        else:
            _held.append((temporary, path))
    except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
        temporary.unlink(missing_ok=True)
        kept = f"; the one before it is intact: {path}" if path.exists() else ""
        number = getattr(error, "errno", None) or errno.ENOSPC
        raise OSError(number, f"cannot save {path}: {getattr(error, 'strerror', None) or error}{kept}") from error


def load(path: Path) -> dict:
    """Tensors and plain containers only (`weights_only=True`): a checkpoint from anywhere is safe to open.

    Raises Damaged where it is none or of another format, FileNotFoundError where there is no file.
    """
    if path.is_dir():
        raise Damaged(f"{path} is a folder, and should be a file")
    with open(path, "rb") as file:
        if not file.read(1):
            raise Damaged(f"{path} is empty")
        file.seek(0)
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever torch and pickle make of a file that is something else
            raise Damaged(f"{path} is no checkpoint, or damaged") from error
    if not isinstance(state, dict):
        raise Damaged(f"{path} is no checkpoint: it holds no mapping")
    if (number := state.get("format", FORMAT)) != FORMAT:
        raise Damaged(f"{path} is of format {number}, and this version of the program reads format {FORMAT}")
    return state
