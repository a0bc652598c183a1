"""Fixtures that several files of this room use."""

import pytest

from runner.core import threads
from runner.federated.cores import spread


@pytest.fixture
def cores(monkeypatch):
    """Two threads, and processes for every client after the first; a function that counts the processes so far."""
    forked = []

    def watched(work, tasks, count, *rest):
        forked.append(count)
        return spread(work, tasks, count, *rest)

    monkeypatch.setattr("runner.federated.cores.FORK", 0.0)
    monkeypatch.setattr("runner.federated.cores.spread", watched)
    before = threads.allowed()
    threads.allow(2)
    yield lambda: sum(forked)
    threads.allow(before)
