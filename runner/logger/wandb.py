"""Weights & Biases."""

from pathlib import Path
from typing import Literal

from runner.logger import Logger


class Wandb(Logger):
    """Metrics, the nested resolved config and the result, as a W&B run whose id is the run's own.

    A run that is resumed or exported again goes on in the same W&B run: steps that are there already are left as they
    are. The W&B files are in the run's folder, under `wandb/`; `wandb sync` uploads what was written offline.

    Parameters
    ----------
    mode : `offline` needs neither network nor login; `online` needs both; `disabled` does nothing. Default `offline`.
    project : default `runner`.
    entity : user or team; None is the account's default.
    group : None is the run's `name`, so that a sweep is one group.
    tags : default none.
    """

    def __init__(
        self,
        mode: Literal["offline", "online", "disabled"] = "offline",
        project: str = "runner",
        entity: str | None = None,
        group: str | None = None,
        tags: list[str] = (),
    ):
        self.mode, self.project, self.entity, self.group, self.tags = mode, project, entity, group, list(tags)

    def start(self, folder: Path, run_id: str, config: dict, resumed: bool) -> None:
        import wandb

        name = str(config.get("name", folder.parent.name))
        self.run = wandb.init(
            mode=self.mode,
            project=self.project,
            entity=self.entity,
            group=self.group or name,
            tags=self.tags,
            id=run_id,
            resume="allow",
            name=f"{name}/{run_id}",
            dir=str(folder),
            config=config,
            # create_new: runs that train side by side in one process stay apart
            settings=wandb.Settings(
                console="off", quiet=True, silent=self.mode != "online", save_code=False, reinit="create_new"
            ),
        )

    def log(self, record: dict) -> None:
        self.run.log(record, step=record["step"])

    def finish(self, status: str, result: dict | None) -> None:
        self.run.summary["status"] = status
        if result is not None:
            self.run.summary["result"] = result
        self.run.finish(exit_code=1 if status == "failed" else 0)
