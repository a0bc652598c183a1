"""Small real runs for tests, composed as the command composes them."""

import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from runner.__main__ import resolved
from runner.config import Train, check_all
from runner.distributed import device
from runner.listing import conf_dir
from runner.run import Elsewhere, assemble, prepare

ROOT = Path(__file__).parent.parent
SMALL = ["dataset.subset=200", "train.batch_size=32", "train.epochs=2", "model.hidden=[16]"]


def compose(*overrides: str) -> dict:
    """The checked config of `python -m runner *overrides`."""
    return _compose(overrides)


@lru_cache(maxsize=256)
def _compose(overrides: tuple[str, ...]) -> dict:
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = hydra.compose("config", list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        choices = OmegaConf.to_container(cfg.hydra.runtime.choices)
        plain = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
        config = resolved(plain, choices)
    check_all(config)
    return config


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
        built, _, _ = assemble(config, train, where, Elsewhere(folder))
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
