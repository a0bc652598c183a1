"""An option in full, as `--list loss=poly` prints it: paper, class, and keys with defaults, ranges and meaning."""

import inspect
import re
import textwrap
from pathlib import Path
from typing import Any, get_args

from omegaconf import OmegaConf

from runner.command.build import locate, misfit, parameters, short
from runner.command.config import Sweep, Train
from runner.command.errors import defaults
from runner.command.listing import GROUPS, MANY, conf_dir, options, title
from runner.core.mistake import ConfigError, suggest
from runner.core.schema import When

NODES = {"train": Train, "sweep": Sweep}


def describe(word: str, folders: list[Path], width: int = 100) -> str:
    """What `--list group=option`, `--list train` and `--list sweep` print. Raises ConfigError where there is none."""
    group, _, option = word.lstrip("+").partition("=")
    if group in NODES:
        values = OmegaConf.to_container(OmegaConf.load(conf_dir() / "config.yaml"))[group]
        return "\n".join(
            [f"{group}.*", *_keys(group, NODES[group], values, comments(conf_dir() / "config.yaml"), width)]
        )
    if group not in GROUPS:
        raise ConfigError(f"no group '{group}'.{suggest(group, GROUPS)} There are: {', '.join(GROUPS)}")
    known = options(group, folders)
    if option not in known:
        raise ConfigError(f"no {group} named '{option}'.{suggest(option, known)} See --list {group}")
    path = known[option]
    where = f"{group}.{option}" if group in MANY else group
    values, said = node(path)
    lines = [f"{group}={option}", *textwrap.wrap(title(path), width, initial_indent="  ", subsequent_indent="  ")]
    lines += [f"  {line}" for line in further(path)]
    sets = [f"{name.split('@')[0].removeprefix('override /')}={value}" for name, value in overridden(path)]
    lines += [f"  also sets {', '.join(sets)}"] if sets else []
    if "_target_" not in values:
        return "\n".join(lines)
    target = locate(values["_target_"], where)
    lines += [f"  _target_: {values.pop('_target_')}", ""]
    about = inspect.cleandoc(target.__doc__ or "").partition("\n\nParameters\n---")[0]
    lines += [f"  {line}".rstrip() for line in about.splitlines()]
    return "\n".join([*lines, *_keys(where, target, values, said, width)])


def node(path: Path) -> tuple[dict, dict[str, str]]:
    """(an option's keys with their values, and the comments behind them), those of what it starts from included."""
    content = OmegaConf.to_container(OmegaConf.load(path))
    values, said = {}, {}
    for entry in content.pop("defaults", []):
        base = path.parent / f"{entry}.yaml" if isinstance(entry, str) else None
        base = base if base is None or base.exists() else conf_dir() / path.parent.name / f"{entry}.yaml"
        if base is not None and entry != "_self_" and base.exists():
            values, said = (old | new for old, new in zip((values, said), node(base), strict=True))
    return values | content, said | comments(path)


def overridden(path: Path) -> list[tuple[str, Any]]:
    entries = [entry for entry in defaults(path) if isinstance(entry, dict)]
    return [pair for entry in entries for pair in entry.items() if pair[0].startswith("override ")]


def comments(path: Path) -> dict[str, str]:
    """Key -> the comment behind it."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    found = (re.match(r"\s*(\w+):\s[^#]*#\s*(.*)$", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def further(path: Path) -> list[str]:
    """The comment lines of a file after its title."""
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.startswith("#")]
    return [line[1:].strip() for line in lines if not line.startswith("# @")][1:]


def _keys(where: str, target: Any, values: dict, said: dict[str, str], width: int) -> list[str]:
    if not values:
        return ["", "It has no keys."]
    known = parameters(target)[0]
    meant = meanings(target, list(values))
    lines = []
    for key, value in values.items():
        parameter = known.get(key)
        lines += ["", f"{where}.{key}={short(value)}   {takes(parameter)}".rstrip()]
        text = meant.get(key) or said.get(key) or ""
        extras = getattr(parameter and parameter.annotation, "__metadata__", ())
        for when in (extra for extra in extras if isinstance(extra, When)):
            text = f"{text.rstrip('.')}. " if text else ""
            text += f"Acts where {where}.{when.key} {when}."
        lines += textwrap.wrap(text, width, initial_indent="    ", subsequent_indent="    ")
    return lines


def takes(parameter: Any) -> str:
    """What values a parameter takes, in words; '' where nothing is known."""
    if parameter is None:
        return ""
    hint = parameter.annotation
    if hint is parameter.empty:
        hint = type(parameter.default) if isinstance(parameter.default, bool | int | float | str) else Any
    if hint is Any:
        return ""
    text, inner = misfit(object(), hint) or "", get_args(hint)
    of = misfit(object(), inner[0]) if inner else None
    return f"a list, each {of}" if text == "a list" and of else text


def meanings(target: Any, keys: list[str]) -> dict[str, str]:
    """Key -> what the section Parameters of the docstring of a class, or of those that it comes from, says of it."""
    found: dict[str, str] = {}
    name = "|".join(map(re.escape, keys))
    start = re.compile(rf"(?:^|(?<=[.;]\s)|(?<=\n))\s*((?:{name})(?:, (?:{name}))*) : ")
    for kind in reversed(getattr(target, "__mro__", [target])):
        text = "" if kind is object else inspect.cleandoc(kind.__doc__ or "")
        section = text if target in NODES.values() else text.partition("\nParameters\n----------\n")[2]
        section = re.split(r"\n\w+\n-{3,}\n", section)[0]
        marks = list(start.finditer(section))
        for mark, following in zip(marks, [*marks[1:], None], strict=False):
            words = " ".join(section[mark.end() : following.start() if following else None].split())
            found |= dict.fromkeys(re.split(", ", mark[1]), words)
    return found
