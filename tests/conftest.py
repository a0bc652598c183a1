"""Shared fixtures. Tests need no network; those that need real data say what they skipped."""

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
ROOMS = [f"tests.{path.name}" for path in ROOT.glob("tests/*") if path.is_dir() and path.name.isidentifier()]
pytest.register_assert_rewrite("tests.tiny", *ROOMS)  # of the files beside the tests too: what they assert is explained
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
torch.set_num_threads(1)  # the tests share the cores among processes
with suppress(ValueError):  # not the main thread
    # in the background of a shell, or under nohup, these are ignored, by all that the tests start too
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, usual)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_dir() -> str:
    """The folder with real data sets in the hub's parquet layout, or a skip that says so."""
    folder = Path(os.environ.get("RUNNER_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "mnist").is_dir():
        pytest.skip(f"no real data: set RUNNER_DATA to a folder with mnist/*.parquet (looked in {folder})")
    return str(folder)
