"""What `-m` adds to Hydra: a sweeper that checks first and ends with a table, and the pool as a launcher.

Hydra takes plugins from packages named `hydra_plugins` alone; `register` tells it of these two under that name.
"""

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner.command.config import Sweep, refuse_idle
from runner.core.mistake import ConfigError
from runner.sweep import ends, objective, plan, pool
from runner.sweep.cells import Cell, Composer, distinct
from runner.sweep.progress import counting


class Pool(Launcher):
    """`hydra/launcher=pool`: the cells go to warm worker processes, see `runner.sweep.pool`."""

    searched_in: Path | None = None  # the folder of the last search of this process

    def setup(self, *, hydra_context, task_function, config) -> None:
        self.context, self.config = hydra_context, config
        self.ready: dict[tuple, Cell] = {}  # by their overrides: what the sweeper has composed before
        self.searched = objective.searches(config.hydra.sweeper)
        Pool.searched_in = Path(config.hydra.sweep.dir) if self.searched else None
        self.why: dict[Path, str] = {}

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """The value of each job is its status, as `runner.sweep.pool.run` says it, and for a sweeper that searches the
        number of `runner.sweep.objective`. After a signal, SystemExit."""
        import os

        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise ConfigError(
                "hydra/launcher=pool starts processes of its own; under torchrun use hydra/launcher=basic"
            )
        compose = Composer(lambda words: self.context.config_loader.load_sweep_config(self.config, words))
        cells = [self.ready.get(tuple(words)) or compose(list(words)) for words in job_overrides]
        for cell in cells if self.searched else ():
            objective.searchable(cell.config)
        outcome = pool.run(cells, Sweep(**cells[0].config["sweep"]), Path(self.config.hydra.sweep.dir))
        if outcome.signal:
            raise SystemExit(outcome.status)
        self.why |= outcome.why
        return [self.told(cell, outcome[cell.folder]) for cell in cells]

    def told(self, cell: Cell, status: str) -> JobReturn:
        state, value = JobStatus.COMPLETED, status
        if self.searched:
            try:
                value = objective.objective(cell.folder)
            except objective.Failed as error:
                state, value = JobStatus.FAILED, error
        return JobReturn(overrides=cell.overrides, status=state, _return_value=value)


class Checked(Sweeper):
    """`hydra/sweeper=checked`: products of values as Hydra's basic sweeper makes them, for any launcher.

    Every cell is composed and checked before the first one starts; a mistake in any of them ends the command with one
    line and status 2, and nothing is written. Cells that compute the same run once. A table closes the sweep; status 1
    where some runs are not done.

    Parameters
    ----------
    max_batch_size : cells that the launcher gets at once; all where null.
    params : key -> values to sweep over, as on the command line, which wins over them.
    """

    def __init__(self, max_batch_size: int | None = None, params: dict[str, str] | None = None):
        self.max_batch_size, self.params = max_batch_size, params or {}

    def setup(self, *, hydra_context, task_function, config) -> None:
        self.context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> list:
        """Raises ConfigError or Hydra's own error, and SystemExit with the status where it is not 0."""
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # not before Hydra has scanned its plugins

        loader = self.context.config_loader
        words = [f"{key}={value}" for key, value in self.params.items()] + arguments
        overrides = OverridesParser.create(config_loader=loader).parse_overrides(words)
        compose = Composer(lambda overrides: loader.load_sweep_config(self.config, overrides))
        wanted = BasicSweeper.split_arguments(overrides, None)[0]
        made = (composed(compose, cell) for cell in wanted)
        try:
            cells = distinct(counting(made, len(wanted), "composed"))
        except KeyboardInterrupt:
            print("stopped while composing; nothing was started", file=sys.stderr)
            raise
        refuse_idle((cell.config, cell.overrides) for cell in cells)
        if not cells:
            raise ConfigError("the sweep has no runs: one of its ranges is empty")
        if plan.wanted:
            return plan.show(cells) or []
        place = Path(self.config.hydra.sweep.dir).expanduser().absolute()
        self.config.hydra.sweep.dir = str(place)
        place.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, place / "multirun.yaml")
        ends.anew(cells)
        ends.announce(cells)
        if isinstance(self.launcher, Pool):
            self.launcher.ready = {tuple(cell.overrides): cell for cell in cells}
        size = self.max_batch_size or len(cells)
        returns = [self.launched(cells[start : start + size], start) for start in range(0, len(cells), size)]
        if status := ends.conclude(cells, getattr(self.launcher, "why", None)):
            raise SystemExit(status)
        return returns

    def launched(self, batch: list[Cell], start: int) -> Sequence[JobReturn]:
        """What the launcher returns. A launcher that gives up does not take the table of the other runs with it."""
        try:
            results = self.launcher.launch([cell.overrides for cell in batch], initial_job_idx=start)
        except (ConfigError, OSError):
            raise
        except Exception as error:
            if isinstance(self.launcher, Pool):
                raise
            traceback.print_exc()
            print(f"runner: {type(self.launcher).__name__} gave up: {error}", file=sys.stderr)
            return []
        for cell, result in zip(batch, results, strict=False):
            if result.status == JobStatus.FAILED:
                error = result._return_value
                print(f"runner: {cell}: {type(error).__name__}: {error}", file=sys.stderr)
        return results


def composed(compose: Composer, overrides: list[str]) -> Cell:
    """A cell; Hydra's error about it has its overrides as `cell`."""
    try:
        return compose(overrides)
    except (HydraException, OmegaConfBaseException) as error:
        error.cell = overrides
        raise


def register() -> None:
    """Make both known to Hydra, under the names that the files in conf/hydra/ give."""
    plugins = Plugins.instance()
    for plugin in (Checked, Pool):
        plugins.register(plugin)
        plugins.class_name_to_class[f"hydra_plugins.runner.{plugin.__name__}"] = plugin
