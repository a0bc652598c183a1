"""Loggers: exporters of metrics.jsonl, which is the record of truth."""

from pathlib import Path


class Logger:
    """Base of every logger. The engine opens it around a run and closes it on failure too."""

    def start(self, folder: Path, run_id: str, config: dict, resumed: bool) -> None:
        """config: the resolved, nested config as plain dicts."""

    def log(self, record: dict) -> None:
        """One line of metrics.jsonl: flat, numbers only, with `step` and `epoch`."""

    def finish(self, status: str, result: dict | None) -> None:
        """status: 'done', 'stopped' (can be resumed) or 'failed'; result: what result.json holds, when done."""
