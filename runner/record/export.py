"""Replay run folders into a tracker: `python -m runner.record.export outputs/NAME[/ID] [--to wandb|tensorboard] ...`

The folder's metrics.jsonl, config and result go through the same classes that log while training, so an exported run
equals one that was logged live. Unfinished runs are exported as far as they came; exporting again is harmless.
"""

import argparse
from pathlib import Path

import yaml

from runner.command.build import locate
from runner.command.listing import conf_dir
from runner.core.output import unbreakable
from runner.record.files import finished, history, read_config, runs


def option(name: str) -> dict:
    """The node of a logger, as its YAML has it."""
    return yaml.safe_load((conf_dir() / "logger" / f"{name}.yaml").read_text())


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
    parser = argparse.ArgumentParser(
        prog="python -m runner.record.export", description="Replay run folders into a tracker."
    )
    parser.add_argument("folder", type=Path, help="outputs/NAME or outputs/NAME/ID")
    parser.add_argument("--to", choices=("wandb", "tensorboard"), default="wandb")
    parser.add_argument("--mode", choices=("offline", "online"), help="wandb only; default offline")
    parser.add_argument("--project", help="wandb only; default runner")
    parser.error = lambda message: parser.exit(2, f"{message}\n")
    given = parser.parse_args(arguments)
    settings = {key: value for key in ("mode", "project") if (value := getattr(given, key)) is not None}
    try:
        if settings and given.to != "wandb":
            raise ValueError(f"--{next(iter(settings))} belongs to --to wandb")
        target = locate(option(given.to)["_target_"], "logger")
        for folder in runs(given.folder):
            count = replay(folder.absolute(), target(**settings))
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
