"""What a word says, as the user typed it, in the grammar that Hydra reads.

A path may have blanks, `=`, brackets and letters of any script; Hydra takes such a value in quotes of its own, inside
those of the shell. A mapping of an option, such as `args` of model=timm, may be given whole or key by key; Hydra takes
only keys that are there, or with `++`.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from runner.command.listing import GROUPS, MANY, options

PATHS = (
    "data_dir",
    "cache_dir",
    "outputs_dir",
    "checkpoint",
    "name",
)  # keys whose value is text whatever it looks like
SWEEP = re.compile(r"(choice|range|interval|glob|sort|shuffle|tag)\(.*\)", re.DOTALL)
COMMA = re.compile(r",(?=(?:[^']*'[^']*')*[^']*$)")  # that no quotes hold


def spelled(words: Iterable[str], folders: list[Path], sweep: bool) -> list[str]:
    """The overrides for Hydra.

    folders : with the user's and the packaged options. sweep : whether commas separate the values of a sweep.
    """
    return [one for word in words for one in _mapping(_path(word, sweep), tuple(folders))]


def _path(word: str, sweep: bool) -> str:
    """In quotes where Hydra would read something else, or nothing, from a path."""
    key, equals, value = word.partition("=")
    named = key.lstrip("+") in PATHS
    if key.startswith("~") or not value or not (named or "/" in value or value.startswith("~")):
        return word
    if value[0] in "[{" or SWEEP.fullmatch(value) or _reads(value, value, named):
        return word
    if "," in value and (sweep or not Path(value).expanduser().exists()):
        return f"{key}={','.join(_quoted(part, named) for part in COMMA.split(value))}"
    return f"{key}={_quoted(value, named)}"


def _quoted(value: str, named: bool) -> str:
    if _reads(value, value, named) or (len(value) > 1 and value[0] == value[-1] and value[0] in "'\""):
        return value
    text = re.sub(r"(\\*)'", lambda found: 2 * found[1] + "\\'", value)
    text = re.sub(r"(\\+)$", lambda found: 2 * found[1], text)
    return f"'{text}'"


def _reads(value: str, expected: str, named: bool) -> bool:
    """Whether Hydra reads the expected text from a value, or what is no path: null, and a number where no path is
    asked for."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import QuotedString
    from hydra.errors import HydraException

    try:
        found = OverridesParser.create().parse_override(f"key={value}")
    except (HydraException, ValueError, RecursionError):
        return False
    if found.is_sweep_override():
        return False
    found = found._value
    return (
        isinstance(found, QuotedString) or found is None or found == expected or not (named or isinstance(found, str))
    )


def _mapping(word: str, folders: tuple[Path, ...]) -> list[str]:
    """With the signs that let Hydra put keys into an option's mapping; a whole one takes the place of what is there."""
    key, equals, value = word.partition("=")
    if not equals or key.count(".") < 1 or key[0] in "+~" or key.partition(".")[0] not in GROUPS:
        return [word]
    for where, default in _mappings(key.partition(".")[0], folders):
        if key == where and value.startswith("{"):
            return [*([f"{key}=null"] if default else []), f"++{word}"]
        if key.startswith(f"{where}."):
            return [f"++{word}"]
    return [word]


@lru_cache(maxsize=64)
def _mappings(group: str, folders: tuple[Path, ...]) -> list[tuple[str, bool]]:
    """Keys of a group's options that are mappings and no nodes, and whether any option has something in it."""
    import yaml

    found: dict[str, bool] = {}
    for option, path in options(group, list(folders)).items():
        try:
            node: Any = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except (yaml.YAMLError, OSError, UnicodeDecodeError):  # Hydra says it, of the options that are chosen
            continue
        where = f"{group}.{option}" if group in MANY else group
        for name, value in node.items() if isinstance(node, dict) else ():
            if isinstance(value, dict) and "_target_" not in value:
                found[f"{where}.{name}"] = found.get(f"{where}.{name}", False) or bool(value)
    return list(found.items())
