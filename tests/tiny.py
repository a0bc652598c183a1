"""Small real runs for tests, composed as the command composes them."""

import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import torch

from runner import compose as composing
from runner.config import Train
from runner.distributed import device
from runner.run import Elsewhere, assemble, prepare

ROOT = Path(__file__).parent.parent
compose = lru_cache(maxsize=256)(composing.compose)
SMALL = ["dataset.subset=200", "train.batch_size=32", "train.epochs=2", "model.hidden=[16]"]


def trainer(*overrides: str, folder: Path | None = None, double: bool = False):
    """A Trainer that writes nothing but checkpoints into `folder`; with `double` in float64."""
    config = compose(*overrides)
    train = Train(**config["train"])
    where = device("cpu" if config["device"] == "auto" else config["device"])
    prepare(config["seed"], train, where)
    before = torch.get_default_dtype()
    if double:
        torch.set_default_dtype(torch.float64)
    try:
        built, *_ = assemble(config, train, where, Elsewhere(folder))
    finally:
        torch.set_default_dtype(before)
    built.tell = lambda *_: None
    built.model.train()
    return built


def command(*words: str, cwd: Path, env: dict | None = None, timeout: float = 240, python: str = sys.executable):
    """`python -m runner words` in a process of its own; stdout and stderr as text."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(env or {})}
    return subprocess.run(
        [python, "-m", "runner", *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout
    )
