"""A sweep of many runs says how far it is while it is composed."""

import sys

import pytest

from runner.sweep import progress
from runner.sweep.progress import counting


@pytest.fixture
def clock(monkeypatch):
    """`tick(seconds)`: each item takes so long."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def items(count, seconds):
        for item in range(count):
            now[0] += seconds
            yield item

    return items


def test_what_is_quick_says_nothing(clock, capsys):
    assert list(counting(clock(1000, 0.001), 1000, "composed")) == list(range(1000))
    assert capsys.readouterr() == ("", "")


def test_elsewhere_a_line_every_ten_seconds(clock, capsys):
    assert sum(counting(clock(20_000, 0.003), 20_000, "composed")) == sum(range(20_000))
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0] == "composed 3,334 of 20,000 runs"  # after ten seconds
    assert len(lines) == 5  # of sixty seconds
    assert all(line.startswith("composed ") for line in lines)


def test_on_a_terminal_one_line_counts_and_goes(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    list(counting(clock(20_000, 0.003), 20_000, "composed"))
    err = capsys.readouterr().err
    assert "\n" not in err
    assert err.count("\rcomposed ") > 100
    assert err.endswith(f"\r{' ' * len('composed 20,000 of 20,000 runs')}\r")


def test_a_few_that_are_slow_say_nothing(clock, capsys):
    list(counting(clock(49, 10.0), 49, "composed"))
    assert capsys.readouterr() == ("", "")
