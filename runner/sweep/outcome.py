"""What became of a sweep's runs."""

import signal
from pathlib import Path


class Outcome(dict):
    """Folder -> "done", "failed", "stopped" or "missing" (never started).

    signal : the name of the signal that stopped the sweep, or "". why : folder -> one line about a run that failed.
    """

    def __init__(self):
        super().__init__()
        self.signal = ""
        self.why: dict[Path, str] = {}

    @property
    def status(self) -> int:
        """What a command that was stopped ends with: 128 and the signal's number."""
        return 128 + signal.Signals[self.signal]
