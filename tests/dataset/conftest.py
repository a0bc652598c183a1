"""Fixtures that several files of this room use."""

import numpy as np
import pytest

from tests.dataset.made import NAMES, TEST, TRAIN, write


@pytest.fixture
def folder(tmp_path):
    """A small colour set, `tiny`, in two training files."""
    y = np.arange(40) % 3
    write(tmp_path / "data" / "tiny" / "train-00000-of-00002.parquet", TRAIN[:25], y[:25], names=NAMES)
    write(tmp_path / "data" / "tiny" / "train-00001-of-00002.parquet", TRAIN[25:], y[25:], names=NAMES)
    write(tmp_path / "data" / "tiny" / "test-00000-of-00001.parquet", TEST, np.arange(10) % 3, names=NAMES)
    return tmp_path
