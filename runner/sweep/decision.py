"""Whether runs of a kind are packed: measured once for a kind on a machine, kept beside them, then followed.

A pack rounds otherwise than a run alone. If the clock decided anew each time, the same sweep would come to other bits
on another day.
"""

import hashlib
import json
import socket
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from runner.record.environment import processor
from runner.record.files import read_json, write_json
from runner.sweep.cells import Cell
from runner.sweep.kind import structure

FILE = Path(".sweeps", "packing.json")  # in outputs/<name>


class Decision:
    """What was measured of a kind of run on this machine, with the file held by this process until `with` ends.

    gain : how many times as fast side by side as one by one; None where it has not been measured. What is assigned to
    it is kept. when : the day.
    """

    def __init__(self, cell: Cell, device):
        self.path = cell.folder.parent / FILE
        self.key, self.what = key(cell.config, device), str(cell)
        self.gain: float | None = None
        self.when = ""

    def __enter__(self) -> "Decision":
        from filelock import FileLock

        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(self.path.with_suffix(".lock"))
        self.lock.acquire()  # two workers with packs of one kind: the second follows what the first has measured
        found = self._read().get(self.key)
        if isinstance(found, dict) and isinstance(found.get("gain"), int | float):
            self.gain, self.when = found["gain"], str(found.get("measured"))
        self.before = self.gain
        return self

    def __exit__(self, *_) -> None:
        try:
            if self.gain is not None and self.gain != self.before:
                content = {"gain": self.gain, "measured": f"{datetime.now():%Y-%m-%d}", "of": self.what}
                with suppress(OSError):  # a full disk is said by the runs
                    write_json(self.path, self._read() | {self.key: content})
        finally:
            self.lock.release()

    def _read(self) -> dict:
        try:
            found = read_json(self.path)
        except ValueError:  # damaged: measured again
            found = None
        return found if isinstance(found, dict) else {}


def key(config: dict, device) -> str:
    """Of the kind of run and of the machine."""
    import torch

    kind = {name: node for name, node in structure(config).items() if name not in APART}
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else processor()
    machine = [socket.gethostname(), name, torch.get_num_threads(), torch.__version__]
    return hashlib.sha256(json.dumps([kind, machine], sort_keys=True).encode()).hexdigest()[:16]


APART = ("name", "outputs_dir", "data_dir", "cache_dir", "logger")
