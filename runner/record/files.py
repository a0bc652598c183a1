"""The files of a run's folder, read and written: whole or not at all, and damage in one line."""

import json
import math
import numbers
import os
from pathlib import Path
from typing import Any


def plain(value: Any) -> Any:
    """`value` as what JSON can hold: numbers of numpy and torch as Python's, non-finite floats as null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "tolist"):  # arrays, tensors and numpy's booleans
        return plain(value.tolist())
    return str(value)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write beside `path`, flush to disk, then rename: readers see the old file or the new one, whole.

    Raises OSError with one line that names the file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}") from error


def write_json(path: Path, content: dict) -> None:
    write_atomic(path, json.dumps(plain(content), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict | None:
    """The file's content, or None where there is no file. Raises ValueError where it is no mapping in JSON."""
    text = _text(path)
    if text is None:
        return None
    try:
        found = json.loads(text, parse_constant=_not_json)
    except (ValueError, RecursionError) as error:
        why = "it is empty" if not text.strip() else f"it is not valid JSON: {error}"
        raise ValueError(f"{path} is damaged: {why}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it holds no mapping")
    return found


def _not_json(word: str) -> None:
    raise ValueError(f"{word} is no number")  # null is what is written where a measure is not finite


def read_yaml(path: Path) -> Any:
    """The file's content, or None where there is no file or nothing in it. Raises ValueError where it is not YAML."""
    import yaml

    text = _text(path)
    try:
        return yaml.load(text or "", getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # C: ten times as fast
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: it is not valid YAML: {' '.join(str(error).split())}") from None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except IsADirectoryError:
        raise ValueError(f"{path} is a folder, and should be a file") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is damaged: it is no text") from None


def read_config(folder: Path) -> dict:
    """The run's resolved config. Raises ValueError where there is none."""
    path = folder / ".hydra" / "config.yaml"
    found = read_yaml(path)
    if not path.exists():
        raise ValueError(f"{folder} is not a run's folder: it has no .hydra/config.yaml")
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it holds no mapping")
    return found


def finished(folder: Path) -> dict | None:
    """The content of result.json, or None where the run is not done. Raises ValueError where it is damaged."""
    path = folder / "result.json"
    found = read_json(path)
    if found is None:
        return None
    if "last" not in found:
        raise ValueError(f"{path} is damaged: it has no measures of the last epoch")
    for key in ("last", "best_val", "best_test"):
        line = found.get(key)
        if line is not None and not isinstance(line, dict):
            raise ValueError(f"{path} is damaged: {key} holds no mapping")
        for name, value in (line or {}).items():
            if name.startswith(("train_", "val_", "test_")) and not isinstance(value, float | int | None):
                raise ValueError(f"{path} is damaged: {key}.{name} is no number")
    return found


def sessions(folder: Path) -> list[dict]:
    """The entries of environment.json; none where it is missing or damaged: it decides nothing."""
    try:
        found = (read_json(folder / "environment.json") or {}).get("sessions")
    except ValueError:
        return []
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def history(folder: Path) -> list[dict]:
    """The records of metrics.jsonl. A torn last line, of a process killed while it wrote, is left out.

    Raises ValueError where a line before the last is not a JSON record: that is damage, not an interruption.
    """
    return [record for record, _ in records(folder / "metrics.jsonl")]


def records(path: Path) -> list[tuple[dict, int]]:
    """Every whole record of the file, with the byte at which its line ends."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder, and should be a file")
    if not path.exists():
        return []
    found, end = [], 0
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is empty or torn
        end += len(line) + 1
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError
            found.append((record, end))
        except (ValueError, RecursionError):
            if number == len(lines) - 1:  # blocks of a file may reach the disk out of order
                break
            raise ValueError(f"{path}, line {number}: not a JSON record") from None
    return found


def runs(folder: Path) -> list[Path]:
    """The run folders at or directly under `folder`. Raises ValueError where there is none."""
    if (folder / "metrics.jsonl").exists():
        return [folder]
    found = sorted(path.parent for path in folder.glob("*/metrics.jsonl"))
    if not found:
        raise ValueError(f"no run in {folder}: expected metrics.jsonl there or in its subfolders")
    return found
