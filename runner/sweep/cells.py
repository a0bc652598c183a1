"""The two ends of a sweep: every cell is checked before the first one runs, and a table closes it."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from hydra.experimental.callback import Callback


@dataclass
class Cell:
    """One run of a sweep: its checked config, and what one would type to get it alone."""

    config: dict
    overrides: list[str]

    @property
    def folder(self) -> Path:
        from runner.config import folder

        return folder(self.config)

    def __str__(self) -> str:
        return " ".join(self.overrides)


class Refused(BaseException):
    """A cell that does not compose or check. Hydra turns a callback's Exception into a warning; this passes through."""


class Cells(Callback):
    """A Hydra callback, so that it works under any launcher: what it knows of a cell is what the cell's folder says."""

    def on_multirun_start(self, config, config_name=None, **_) -> None:
        """Compose and check all cells; a mistake in any of them ends the command with one line and status 2."""
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
        from hydra.core.global_hydra import GlobalHydra
        from hydra.core.override_parser.overrides_parser import OverridesParser
        from omegaconf import OmegaConf

        from runner.compose import resolved
        from runner.config import check_all, folder

        loader = GlobalHydra.instance().config_loader()
        words = OmegaConf.to_container(config.hydra.overrides.task)
        self.cells: dict[Path, str] = {}
        try:
            overrides = OverridesParser.create(config_loader=loader).parse_overrides(words)
            for cell in BasicSweeper.split_arguments(overrides, None)[0]:
                composed = loader.load_sweep_config(config, list(cell))
                choices = OmegaConf.to_container(composed.hydra.runtime.choices)
                chosen = resolved(composed, choices)
                check_all(chosen)
                self.cells.setdefault(folder(chosen), " ".join(cell))
        except Exception as error:
            raise Refused(error) from error
        done = sum((place / "result.json").exists() for place in self.cells)
        place = next(iter(self.cells)).parent
        print(f"sweep of {len(self.cells)} runs in {place}, {done} of them done before\n", flush=True)

    def on_multirun_end(self, config, config_name=None, **_) -> None:
        """Print and save the table of this sweep's cells; status 1 with a list where some are not done."""
        if int(os.environ.get("RANK", 0)):
            return
        from runner.sweep.table import save, table

        places = list(self.cells)
        done = [place for place in places if (place / "result.json").exists()]
        if done:
            report = table(places)
            print(f"\n{report.text()}", flush=True)
            save(report, places[0].parent)
        if failed := [place for place in places if place not in done]:
            print(f"\n{len(failed)} of {len(places)} runs failed:", file=sys.stderr)
            for place in failed:
                print(f"  {self.cells[place]}   ({place / 'failed.json'})", file=sys.stderr)
            raise SystemExit(1)
