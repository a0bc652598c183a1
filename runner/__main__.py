"""`python -m runner group=option key=value ...`: compose, check, launch."""

import os
import signal
import sys
import traceback
from pathlib import Path

from runner.command import words
from runner.command.launchers import missing_plugin, with_options
from runner.command.listing import conf_dir, listing
from runner.command.spelling import spelled
from runner.command.usage import described, folders_of, usage
from runner.core.mistake import ConfigError
from runner.core.output import loading, unbreakable


def main(argv: list[str] | None = None) -> int:
    """The command. Returns the exit status: 0 done, 1 failed, 2 a mistake in the command, 128 + n by signal n."""
    from runner.record import again

    with unbreakable():
        try:
            return _main(argv)
        except KeyboardInterrupt:
            return 130
        finally:
            again.wanted = ""  # by this command alone


def _main(argv: list[str] | None) -> int:
    if wrong := _torchrun():
        return _mistake(wrong)
    argv = list(sys.argv[1:] if argv is None else argv)
    from runner.record import again

    try:
        argv, again.wanted = again.flag(argv)
        flags, given = words.ordered(map(_alias, argv))
        folders = folders_of(flags)
    except ConfigError as error:
        return _mistake(str(error))
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # the user's own methods, also through the console script
    if {"--list", "--help", "-h"} & set(flags) and (whole := [w for w in given if "=" in w or w in ("train", "sweep")]):
        try:
            print(described(whole, folders))
        except ConfigError as error:
            return _mistake(str(error))
        return 0
    if "--list" in flags:
        print(listing(folders, *given[:2]))
        return 0
    if "--help" in flags or "-h" in flags:
        print(usage(folders))
        return 0
    if "--version" in flags:
        from runner import __version__

        print(__version__)
        return 0
    experiment_ = any(word.lstrip("+").startswith("experiment=") for word in given)
    spelt = spelled(given, folders, sweep=experiment_ or bool({"-m", "--multirun"} & set(flags)))
    try:
        words.once(given)
        for word in spelt if not {"--hydra-help", "--shell-completion", "-sc"} & set(flags) else []:
            seeds = experiment_ and word.startswith("seed=")
            words.parse(word, sweep=bool({"-m", "--multirun"} & set(flags)) or seeds)
    except ConfigError as error:
        return _mistake(str(error))
    if "--plan" in flags:
        from runner.sweep import plan

        if again.wanted:
            return _mistake("--plan shows what is there, and --again runs it anew: one of them")
        flags.remove("--plan")
        with plan.asked(folders[:-1]):
            return _composed(flags, given, spelt, folders)
    return _composed(flags, given, spelt, folders)


def _composed(flags: list[str], given: list[str], spelt: list[str], folders: list[Path]) -> int:
    loading()
    if any(word.lstrip("+").startswith("experiment=") for word in given):
        from runner.sweep import experiment

        return experiment.main([*flags, *given], folders)
    argv = [*flags, *spelt]
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        from runner.core import distributed

        distributed.start()
        try:
            status = _follow() if distributed.rank else _lead(argv, folders)
        finally:
            distributed.stop()
        distributed.leave(status)
    return _compose(argv, folders)


def _alias(word: str) -> str:
    """`optimizer=` is another spelling of `optim=`."""
    for prefix in ("", "+", "++", "~"):
        for end in ("=", "."):
            if word.startswith(f"{prefix}optimizer{end}"):
                return word.replace("optimizer", "optim", 1)
    return word


def _mistake(message: str) -> int:
    print(f"runner: {message}", file=sys.stderr)
    return 2


def _compose(argv: list[str], folders: list[Path]) -> int:
    """One run in this process; with -m a sweep, by the pool unless another launcher is chosen."""
    chosen = any(word.lstrip("+").startswith("hydra/launcher=") for word in argv)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # every run is shared by all processes: one after another
        return _hydra(argv if chosen else [*argv, "hydra/launcher=basic"], folders)
    if chosen or _planned() or not {"-m", "--multirun"} & set(argv):
        return _hydra(argv, folders)
    from runner.sweep import process

    process.warm()
    try:
        return _hydra(argv, folders)
    finally:
        process.cool()


def _planned() -> bool:
    """Whether `--plan` was asked for."""
    plan = sys.modules.get("runner.sweep.plan")
    return plan is not None and plan.wanted


def _hydra(argv: list[str], folders: list[Path]) -> int:
    """Hydra composes the config and calls `_job` for a run, or hands the cells of a sweep to `runner.sweep.plugins`."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions reach us instead of Hydra's own report
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from runner.__main__ import _job  # by a name that other processes can import: launchers send it there
    from runner.command.errors import broken, explain
    from runner.sweep import plugins
    from runner.sweep.objective import Failed, best

    plugins.register()
    given = words.ordered(argv)[1]
    before = sys.argv
    sys.argv = ["runner", *with_options(argv)]
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(_job)()
        if plugins.Pool.searched_in is not None and (found := best(plugins.Pool.searched_in)):
            print(found)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except KeyboardInterrupt:
        return 130
    except ConfigError as error:
        return _mistake(str(error))
    except Failed as error:  # a run of a search, and the sweeper goes on without it no longer
        print(f"runner: {error}", file=sys.stderr)
        return 1
    except (HydraException, OmegaConfBaseException) as error:
        return _mistake(missing_plugin(error) or explain(error, getattr(error, "cell", given), folders))
    except OSError as error:
        return _no_room(error)
    except Exception:
        if line := broken(folders):
            return _mistake(line)
        raise
    finally:
        sys.argv = before
    return 0


def _job(cfg) -> float | None:
    """One run, in the process that composed it. Ends the process's status with SystemExit where it is not 0.

    Returns what a sweeper that searches asks for, see `runner.sweep.objective`.
    """
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from runner.command.compose import resolved
    from runner.command.config import check_all, refuse_typed
    from runner.record import again
    from runner.record.identity import folder
    from runner.sweep.objective import objective, searchable, searches

    hydra_config = HydraConfig.get()
    search = hydra_config.mode.name == "MULTIRUN" and searches(hydra_config.sweeper)
    try:
        config = resolved(cfg, OmegaConf.to_container(hydra_config.runtime.choices))
        check_all(config)
        if hydra_config.mode.name == "RUN":
            refuse_typed(config, OmegaConf.to_container(hydra_config.overrides.task))
        if search:
            searchable(config)
    except ConfigError as error:
        raise SystemExit(_mistake(str(error))) from None
    overrides = OmegaConf.to_container(hydra_config.overrides.task)
    if _planned():
        from runner.sweep import cells, plan

        return plan.show([cells.Cell(config, overrides)])
    if hydra_config.mode.name == "RUN":  # a sweep has done it for all its runs
        try:
            for line in again.prepare([(config, folder(config))]):
                print(line, flush=True)
        except ConfigError as error:
            raise SystemExit(_mistake(str(error))) from None
    status = launch(config, overrides)
    one_process = int(os.environ.get("WORLD_SIZE", 1)) == 1
    if status and (hydra_config.mode.name == "RUN" or status > 128 or not one_process):
        raise SystemExit(status)  # in a sweep the next cell goes on; the sweep's end says which failed
    return objective(folder(config)) if search else None


def launch(config: dict, overrides: list[str]) -> int:
    """Run a checked config here, and with torchrun in the other processes too; returns the exit status."""
    from runner.core import distributed

    distributed.from_first((config, overrides))
    return _run(config, overrides)


def _run(config: dict, overrides: list[str]) -> int:
    from runner.core.blame import blame, own_frame
    from runner.engine.diagnose import NonFinite
    from runner.engine.run import run
    from runner.record.folder import Died, Stopped
    from runner.record.identity import folder

    try:
        run(config, overrides)
    except ConfigError as error:
        return _mistake(str(error))
    except Stopped as stop:
        print(f"stopped by {stop}; the same command goes on from here", file=sys.stderr)
        return 128 + signal.Signals[str(stop)]
    except (NonFinite, Died) as error:
        print(f"runner: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped at once; the same command goes on from the last save", file=sys.stderr)
        return 130
    except OSError as error:
        return _no_room(error)
    except (Exception, SystemExit) as error:
        if own_frame(error) is None:
            traceback.print_exc()
        else:  # in code of the user's: it names its file and line, and failed.json has the rest
            kept = folder(config) / "failed.json"
            print(f"runner: {blame(error)}" + (f"; in full: {kept}" if kept.exists() else ""), file=sys.stderr)
        return 1
    return 0


def _no_room(error: OSError) -> int:
    """Trouble of the system (a full disk, a folder that is not ours to write in, a file where a folder should be): one
    line. An error that does not say what it is about keeps its traceback."""
    said = error.strerror or str(error)
    if error.filename is not None and str(error.filename) not in said:
        said = f"{error.filename}: {said}"
    elif error.filename is None and "/" not in said:
        traceback.print_exc()
    print(f"runner: {said}", file=sys.stderr)
    return 1


def _torchrun() -> str | None:
    """What is wrong with the variables that torchrun sets, where they are set; None where nothing is."""
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        value = os.environ.get(name, "0")
        if not (value.isascii() and value.isdigit()) or name == "WORLD_SIZE" and name in os.environ and int(value) < 1:
            return f"{name}={value} in the environment is no number of processes: torchrun sets it; else unset it"
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
            if name not in os.environ:
                return f"WORLD_SIZE={os.environ['WORLD_SIZE']} without {name}: start with torchrun, or unset WORLD_SIZE"
        if int(os.environ["RANK"]) >= int(os.environ["WORLD_SIZE"]):
            return f"RANK={os.environ['RANK']} is none of WORLD_SIZE={os.environ['WORLD_SIZE']} processes"
    return None


def _lead(argv: list[str], folders: list[Path]) -> int:
    """The first of several processes: it alone composes, and tells the others when there is no more to run."""
    from runner.core import distributed

    status = _compose(argv, folders)
    if status != 1:  # after a crash the others are waiting for something else: torchrun ends them
        distributed.from_first(None)
    return status


def _follow() -> int:
    """Any other process: run what the first one sends."""
    from runner.core import distributed

    status = 0
    while (job := distributed.from_first(None)) is not None:
        status = _run(*job) or status
    return status


if __name__ == "__main__":
    sys.exit(main())
