"""Replay run folders into a tracker: `python -m runner.export outputs/NAME[/ID] [--to wandb|tensorboard] ...`

The folder's metrics.jsonl, config and result go through the same classes that log while training, so an exported run
equals one that was logged live. Unfinished runs are exported as far as they came; exporting again is harmless.
"""

import argparse
from pathlib import Path

from runner.output import unbreakable
from runner.record import finished, history, read_config


def runs(folder: Path) -> list[Path]:
    """The run folders at or directly under `folder`. Raises ValueError where there is none."""
    if (folder / "metrics.jsonl").exists():
        return [folder]
    found = sorted(path.parent for path in folder.glob("*/metrics.jsonl"))
    if not found:
        raise ValueError(f"no run in {folder}: expected metrics.jsonl there or in its subfolders")
    return found


def replay(folder: Path, logger) -> int:
    """One run folder into one logger. Returns how many records there were."""
    records, result = history(folder), finished(folder)
    failed = (folder / "failed.json").exists()
    # resumed: what this folder's logger wrote before, live or by an earlier export, is superseded and not doubled
    logger.start(folder, folder.name, read_config(folder), resumed=True)
    status = "failed"
    try:
        for record in records:
            logger.log({key: value for key, value in record.items() if value is not None})
        status = "done" if result is not None else "failed" if failed else "stopped"
    finally:
        logger.finish(status, result)
    return len(records)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m runner.export", description="Replay run folders into a tracker.")
    parser.add_argument("folder", type=Path, help="outputs/NAME or outputs/NAME/ID")
    parser.add_argument("--to", choices=("wandb", "tensorboard"), default="wandb")
    parser.add_argument("--mode", choices=("offline", "online"), help="wandb only; default offline")
    parser.add_argument("--project", help="wandb only; default runner")
    parser.error = lambda message: parser.exit(2, f"{message}\n")
    given = parser.parse_args(arguments)
    settings = {key: value for key in ("mode", "project") if (value := getattr(given, key)) is not None}
    try:
        if given.to == "wandb":
            from runner.logger.wandb import Wandb as Target
        else:
            from runner.logger.tensorboard import TensorBoard as Target

            if settings:
                raise ValueError(f"--{next(iter(settings))} belongs to --to wandb")
        for folder in runs(given.folder):
            count = replay(folder.absolute(), Target(**settings))
            print(f"{folder}: {count} records to {given.to}")
    except ImportError as error:
        parser.error(f"--to {given.to} needs a package that is not here ({error}): pip install {given.to}")
    except Exception as error:
        if not isinstance(error, ValueError | OSError) and not type(error).__module__.startswith("wandb"):
            raise
        parser.error(" ".join(str(error).split()))
    if given.to == "wandb" and given.mode != "online":
        print("upload with: wandb sync <run folder>/wandb/offline-run-*")


if __name__ == "__main__":
    with unbreakable():
        main()
