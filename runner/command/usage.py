"""What the command says of itself: `--help`, `--list`, and where options are."""

import shutil
import sys
from pathlib import Path

from runner.command.listing import GROUPS, conf_dir, options
from runner.core.mistake import ConfigError

USAGE = """\
usage: python -m runner [group=option ...] [key=value ...] [-m]

  python -m runner                                       a small network learns handwritten digits
  python -m runner loss=poly optim=sam dataset=mnist model=lenet seed=1
  python -m runner -m loss=ce,poly seed=0,1,2            a sweep, with a table at the end
  python -m runner +experiment=pezeshki2021/table1       a paper's table: what is missing is run, then both side by side

The same command continues an interrupted run and skips a finished one; where its code or data have changed, it says so
and does neither.

Groups (python -m runner --list GROUP shows each option with its paper):
{groups}

Keys: name, seed, device, checkpoint, data_dir, cache_dir, outputs_dir, train.* and each option's, e.g. optim.lr=0.05
  train.{train}
  sweep.{sweep}

Flags:
  -m, --multirun         run every combination of comma-separated values
  --list [GROUP] [TEXT]  the options and their papers
  --list GROUP=OPTION    an option in full: its keys, defaults, ranges and meaning; also --list train, --list sweep
  --format png|pdf|svg   of an experiment's figure
  --config-dir DIR       a folder of your own options, laid out as conf/ is
  --again[=changed]      run anew what is there (=changed: what is of other code or data, or damaged), and keep
                         beside, in .earlier/, what was there
  --plan                 what would be run, what of it is there, and the commands of the rest; nothing is run
  --cfg job              print the composed config and do nothing
  --version, --help, --hydra-help
"""


def described(given: list[str], folders: list[Path]) -> str:
    """`--list loss=poly`: options in full. Raises ConfigError."""
    from runner.command.describe import describe

    width = min(100, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 100
    return "\n\n".join(describe(word, folders, width) for word in given)


def folders_of(flags: list[str]) -> list[Path]:
    """The user's --config-dir, where given, then the packaged one. Raises ConfigError where there is no such folder."""
    found = []
    for word, following in zip(flags, [*flags[1:], ""], strict=False):
        flag, equals, value = word.partition("=")
        if flag in ("--config-dir", "-cd"):
            found.append(Path(value if equals else following))
            if not found[-1].is_dir():
                raise ConfigError(f"--config-dir {found[-1]}: there is no such folder")
    return [*found, conf_dir()]


def usage(folders: list[Path]) -> str:
    rows = []
    for group in GROUPS:
        names = list(options(group, folders))
        shown = " ".join(names[:8]) + (f" ... ({len(names)})" if len(names) > 8 else "")
        rows.append(f"  {group:<13} {shown}")
    from runner.command.config import Sweep, Train

    keys = {"train": ", ".join(Train.__dataclass_fields__), "sweep": ", ".join(Sweep.__dataclass_fields__)}
    return USAGE.format(groups="\n".join(rows), **keys)
