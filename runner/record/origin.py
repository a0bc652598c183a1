"""`checkpoint=`: which file it means, what is in it, and a digest of its weights."""

import hashlib
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from runner.core import checkpoint
from runner.core.mistake import ConfigError


def find(where: str) -> Path:
    path = Path(where).expanduser().absolute()
    if not path.exists():
        raise ConfigError(f"checkpoint={where}: there is no such file or folder")
    if path.is_dir():
        path = path / "last.pt"
        if not path.exists():
            raise ConfigError(
                f"checkpoint={where}: no weights in it, no last.pt; give the folder of a run, outputs/<name>/<run id>"
            )
    return path


def load(where: str) -> dict:
    """What the file holds. Raises ConfigError where it does not hold the weights of a run."""
    path = find(where)
    try:
        state = checkpoint.load(path)
    except (ValueError, OSError) as error:
        said = str(error).replace(str(path), path.name)
        raise ConfigError(f"checkpoint={where}: {said}{_others(path)}") from error
    parts = [state, state.get("shown", state)] if isinstance(state, dict) else [None]
    if not all(_has_weights(part) for part in parts):
        raise ConfigError(f"checkpoint={where}: {path.name} does not hold the weights of a run{_others(path)}")
    return state


def weights(state: dict) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of model and loss, as the run evaluates them."""
    shown = state.get("shown", state)
    return dict(shown["model"]), {**state["loss"], **shown["loss"]}


def digest(where: str) -> str:
    """Of the weights alone: the same wherever the file lies and whenever it was written. Read once for every state of
    the file: a sweep asks for each of its runs."""
    path = find(where)
    at = path.stat()
    return _digest(where, path, at.st_mtime_ns, at.st_size)


@lru_cache(maxsize=256)
def _digest(where: str, path: Path, *state: int) -> str:
    found = hashlib.sha256()
    for part in weights(load(where)):
        for name, tensor in sorted(part.items()):
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()[:10]


def _has_weights(part) -> bool:
    return isinstance(part, dict) and all(
        isinstance(part.get(key), dict) and all(isinstance(tensor, Tensor) for tensor in part[key].values())
        for key in ("model", "loss")
    )


def _others(path: Path) -> str:
    """What else there is to start from, for the end of a message."""
    found = sorted(other.name for other in path.parent.glob("*.pt") if other.is_file() and other != path)
    found = [name for name in found if name != "quantized.pt"]
    return f"; beside it there is {' and '.join(found)}" if found else ""
