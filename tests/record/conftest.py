"""Fixtures that several files of this room use."""

from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "outputs" / "sweep" / "0123abcdef"
