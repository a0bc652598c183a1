"""The words of a command: flags before overrides, and what can be said of each before anything is composed."""

from collections.abc import Iterable
from typing import Any

from runner.command.build import short
from runner.command.listing import GROUPS, MANY
from runner.core.mistake import ConfigError, suggest

# Hydra's flags that take a value, with what it is, and those that do not
VALUED = {"--config-dir": "DIR", "-cd": "DIR", "--cfg": "job", "-c": "job", "--package": "PACKAGE", "-p": "PACKAGE"}
VALUED |= {"--format": "png|pdf|svg"}  # of an experiment's figure: our own
VALUED |= {"--config-path": "DIR", "-cp": "DIR", "--config-name": "NAME", "-cn": "NAME"}
BARE = (
    "--help", "-h", "--hydra-help", "--version", "--list", "--multirun", "-m", "--run", "-r", "--resolve", "--info",
    "-i", "--shell-completion", "-sc", "--experimental-rerun", "--plan",
)  # fmt: skip
MODES = ("--cfg", "-c", "--multirun", "-m", "--run", "-r", "--info", "-i", "--shell-completion", "-sc")  # one of them
OPTIONAL = ("--info", "-i")  # which may have one of these values
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


def ordered(argv: Iterable[str]) -> tuple[list[str], list[str]]:
    """(the flags with their values, all other words), as Hydra takes no flag between two overrides.

    Raises ConfigError about a flag that does not exist or lacks its value.
    """
    flags, rest, left = [], [], list(argv)
    while left:
        word = left.pop(0)
        flag, equals, _ = word.partition("=")
        if not word.startswith("-"):
            rest.append(word)
        elif flag in VALUED:
            if not equals and (not left or left[0].startswith("-")):
                raise ConfigError(f"{flag} needs a value: {flag} {VALUED[flag]}")
            flags += [word] if equals else [word, left.pop(0)]
        elif word in BARE or equals and flag in OPTIONAL:
            flags.append(word)
            if word in OPTIONAL and left and left[0] in INFO:
                flags.append(left.pop(0))
        else:
            known = (*BARE, *VALUED, "--again")
            raise ConfigError(f"no flag '{word}'.{suggest(flag, known)} See --help")
    formats = any(flag.partition("=")[0] == "--format" for flag in flags)
    if formats and not any(word.lstrip("+").startswith("experiment=") for word in rest):
        raise ConfigError(
            "--format is of an experiment's figure; of a run's pictures: python -m runner.record.pictures "
            "outputs/NAME/ID --format pdf; of a sweep's: python -m runner.sweep.table outputs/NAME --format pdf"
        )
    if "--plan" in flags and any(word.lstrip("+").startswith("hydra/sweeper=") for word in rest):
        raise ConfigError("--plan: a sweeper that searches makes its runs up on the way")
    modes = [word for word in flags if word.partition("=")[0] in MODES]
    if len(modes) > 1:
        raise ConfigError(f"{' and '.join(modes)} do not go together; the runs of a sweep are shown by --plan")
    if "--resolve" in flags and not any(flag.partition("=")[0] in ("--cfg", "-c") for flag in flags):
        raise ConfigError("--resolve goes with --cfg job, which prints the composed config")
    return flags, rest


def once(words: Iterable[str]) -> None:
    """ConfigError where options of a group of which a run may have any number are chosen twice: the first are lost."""
    chosen: dict[str, list[str]] = {}
    for word in words:
        key, _, value = word.lstrip("+").partition("=")
        if key in MANY and not word.startswith("~"):
            chosen.setdefault(key, []).append(value.strip("[]"))
    for key, values in chosen.items():
        if len(values) > 1:
            raise ConfigError(
                f"{key}= stands there twice, and the later would take the place: {key}=[{','.join(values)}]"
            )


def parse(word: str, sweep: bool = True) -> Any:
    """Hydra's override of a word. Raises ConfigError where nothing can come of it.

    sweep : whether a key may have several values.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ChoiceSweep
    from hydra.errors import HydraException

    key = word.lstrip("+~").partition("=")[0]
    if not key:
        raise ConfigError(f"'{short(word)}' names no key: write key=value")
    if "=" not in word and not word.startswith("~"):
        raise ConfigError(f"'{short(word)}' is not an override: write key=value")
    try:
        found = OverridesParser.create().parse_override(word)
    except (HydraException, ValueError, RecursionError) as error:
        raise ConfigError(_unreadable(word, error)) from None
    if found.is_sweep_override() and not sweep:
        many = key in MANY
        one = f"{key}=[{word.partition('=')[2]}]"
        alone = f"; for all of them in one run: {one}" if many else ""
        alone = f"; for one value that is a list: {one}" if "." in key else alone
        raise ConfigError(f"{short(word)}: several values are a sweep, which needs -m{alone}")
    if (key in GROUPS or key.startswith("hydra/")) and not found.is_delete():
        if not found.is_sweep_override():
            _option(key, found.value())
        elif isinstance(found._value, ChoiceSweep):
            for value in found._value.list:
                _option(key, value)
    return found


def _option(group: str, value: Any) -> None:
    """Refuse what is no name of an option."""
    if isinstance(value, list) and group not in MANY:
        raise ConfigError(one_option(group))
    names = value if isinstance(value, list) else [value]
    if twice := next((name for place, name in enumerate(names) if name in names[:place]), None):
        raise ConfigError(f"{group}={short(value)}: {twice} stands there twice; a run has an option once")
    for name in names:
        if name is None or isinstance(name, bool | int | float):
            none = f"; for none of them {group}=none" if group in MANY else ""
            more = none or (f"; see --list {group}" if group in GROUPS else "")
            raise ConfigError(f"{group}={short(value)}: must be the name of an option{more}")


def one_option(group: str) -> str:
    return f"{group}=[...]: this group takes one option, {group}=a; a run with each of several is -m {group}=a,b"


def _unreadable(word: str, error: Exception) -> str:
    if isinstance(error, ValueError) and "digits" in str(error):
        return f"{short(word)}: that number has too many digits"
    word = word.lstrip("+")
    key, _, value = word.partition("=")
    if value.startswith("{"):
        return f"cannot read '{short(word)}': a mapping goes in quotes for the shell: '{key}={{a: 1, b: 2}}'"
    reason = " ".join(str(error).splitlines()[:1])
    return f"cannot read '{short(word)}': {reason}; what holds brackets, commas or = goes in quotes: key='\"...\"'"
