"""Decoded images on disk: made once for all runs that need them, safely for concurrent jobs."""

import json
import logging
import os
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from runner.dataset import Split

log = logging.getLogger(__name__)
Decoded = tuple[Split, Split, dict]  # training, test, and what is known of them: `META` at least
META = ("classes", "names", "ids", "fingerprint", "statistics")


def kept(folder: Path, name: str, make: Callable[[], Decoded]) -> Decoded:
    """What the folder holds, else what `make` gives, kept there for the next run.

    name : of the data set, for the lines that say that an entry is damaged, or cannot be kept.
    """
    if found := _read(folder):
        return found
    import filelock

    lock = filelock.FileLock(f"{folder}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        _unkept(folder, name, error)
        return make()
    try:
        found = _read(folder)  # another job may have made it while this one waited
        if not found:
            found = make()
            try:
                _write(folder, *found)
            except OSError as error:
                _unkept(folder, name, error)
        return found
    finally:
        lock.release()


def _unkept(folder: Path, name: str, error: Exception) -> None:
    log.warning("cannot keep decoded %s in %s: %s; going on without", name, folder.parent, error)


@lru_cache(maxsize=2)  # the runs of a process read the same few sets
def _held(folder: Path) -> Decoded:
    meta = json.loads((folder / "meta.json").read_text())
    arrays = [torch.from_numpy(np.load(folder / f"{part}.npy")) for part in meta["shapes"]]
    if [list(array.shape) for array in arrays] != list(meta["shapes"].values()):
        raise ValueError("sizes differ from those noted")
    if lost := [key for key in META if key not in meta]:
        raise KeyError(lost[0])
    train_x, train_y, test_x, test_y = arrays
    return Split(train_x, train_y), Split(test_x, test_y), meta


def _read(folder: Path) -> Decoded | None:
    if not folder.is_dir():
        return None
    try:
        return _held(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        log.warning("the cache entry %s is damaged (%s); making it again", folder, line_of(error))
        return None


def _write(folder: Path, train: Split, test: Split, meta: dict) -> None:
    """Under the lock. Readers see the whole entry or none."""
    arrays = {"train_x": train.x, "train_y": train.y, "test_x": test.x, "test_y": test.y}
    meta = meta | {"shapes": {part: list(array.shape) for part, array in arrays.items()}}
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a job that was killed
    try:
        partial.mkdir()
        for part, array in arrays.items():
            np.save(partial / f"{part}.npy", array.numpy())
        (partial / "meta.json").write_text(json.dumps(meta))
        shutil.rmtree(folder, ignore_errors=True)  # a damaged entry
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def line_of(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
