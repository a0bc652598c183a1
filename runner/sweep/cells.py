"""The cells of a sweep, composed and checked before the first one starts: see `runner.sweep.ends` for its words."""

import copy
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.command.listing import GROUPS
from runner.core.mistake import ConfigError


@dataclass
class Cell:
    """One run of a sweep: its checked config, and what one would type to get it alone."""

    config: dict
    overrides: list[str]
    row: str = ""  # its row in a paper's table

    @property
    def folder(self) -> Path:
        from runner.record.identity import folder

        return folder(self.config)

    def __str__(self) -> str:
        return " ".join(self.overrides)


class Composer:
    """Makes cells of lists of overrides. Hydra composes what cells share, once; what is a cell's own is set in that.

    Shared are the words that choose options, and all that are no plain `key=value` with a number, a string, null or a
    list of these. Hydra applies plain words last, one after another, so to set them in the config that the other words
    give is to do what Hydra would, in a hundredth of the time; in a twentieth where a value refers to another.

    Parameters
    ----------
    compose : overrides -> Hydra's composed config, its `hydra` node included.
    """

    def __init__(self, compose: Callable[[list[str]], Any]):
        from hydra.core.override_parser.overrides_parser import OverridesParser

        self.compose = compose
        self.parser = OverridesParser.create()
        self.parsed: dict[str, Any] = {}
        self.groups = set(GROUPS)  # keys that choose an option
        self.bases: dict[tuple[str, ...], _Base] = {}  # by the words that are not plain

    def __call__(self, overrides: list[str]) -> Cell:
        """Raises ConfigError, or Hydra's or OmegaConf's own error, where the cell does not compose or check."""
        from runner.command.config import check_all

        words = [self.parse(word) for word in overrides]
        config = self.varied(words)
        if config is None:
            config = self.composed(overrides).config
        check_all(config)
        return Cell(config, list(overrides))

    def parse(self, word: str):
        if word not in self.parsed:
            self.parsed[word] = self.parser.parse_override(word)
        return self.parsed[word]

    def varied(self, words: list) -> dict | None:
        """The config that the shared words give with the plain ones set in it; None where Hydra has to see them all:
        it says better what is wrong, or a shared word sets what a plain one sets, and their order matters."""
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        plain = [word for word in words if word.key_or_group not in self.groups and _plain(word)]
        shared = [word for word in words if not any(word is other for other in plain)]
        others = [word.key_or_group for word in shared if word.key_or_group not in self.groups]
        if any(_within(word.key_or_group, key) or _within(key, word.key_or_group) for word in plain for key in others):
            return None
        lines = tuple(word.input_line for word in shared)
        try:
            if lines not in self.bases:
                self.bases[lines] = self.composed(lines)
                if any(word.key_or_group in self.groups for word in plain):  # it is one of the user's folder
                    return self.varied(words)
            return self.bases[lines].with_(plain)
        except (ConfigError, HydraException, OmegaConfBaseException, TypeError, ValueError):
            return None

    def composed(self, overrides: Iterable[str]) -> "_Base":
        cfg = self.compose(list(overrides))
        found = _Base(cfg)
        if not self.groups.issuperset(found.choices):
            self.groups |= set(found.choices)
            self.bases.clear()  # they were told apart without these groups
        return found


class _Base:
    """A composed config, in which keys are given other values."""

    def __init__(self, cfg):
        from omegaconf import OmegaConf

        from runner.command.compose import resolved

        self.choices = OmegaConf.to_container(cfg.hydra.runtime.choices)
        self.cfg = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
        self.config = resolved(self.cfg, self.choices)
        self.refers = _refers(self.cfg)

    def with_(self, words: list) -> dict | None:
        """The config with these plain words set, or None where there is no such key, or a mapping."""
        from omegaconf import OmegaConf

        from runner.command.compose import resolved

        config = _copy(self.config)
        for word in words:
            *path, last = word.key_or_group.split(".")
            node = config
            for key in path:
                node = node.get(key) if isinstance(node, dict) else None
            if not isinstance(node, dict) or last not in node or isinstance(node[last], dict):
                return None
            node[last] = _copy(word.value())
        if not self.refers:
            return config
        cfg = copy.deepcopy(self.cfg)
        for word in words:
            OmegaConf.update(cfg, word.key_or_group, word.value(), merge=True)
        return resolved(cfg, self.choices)


def _within(key: str, other: str) -> bool:
    return f"{key}.".startswith(f"{other}.")


def _copy(node: Any) -> Any:
    """Of plain dicts and lists; twenty times as fast as `copy.deepcopy`."""
    if isinstance(node, dict):
        return {key: _copy(value) for key, value in node.items()}
    return [_copy(value) for value in node] if isinstance(node, list) else node


def _refers(cfg) -> bool:
    """Whether a value is made of another: an interpolation of anything but the environment."""
    from omegaconf import OmegaConf

    def look(node: Any) -> bool:
        if isinstance(node, dict):
            return any(map(look, node.values()))
        if isinstance(node, list):
            return any(map(look, node))
        return isinstance(node, str) and "$" in node and not re.fullmatch(r"\$\{oc\.env:[^${}]*\}", node)

    return look(OmegaConf.to_container(cfg, resolve=False))


def _plain(word) -> bool:
    """Whether an override is `key=value`, chooses no option, and has a value that means the same wherever it stands.

    Hydra does not name a group in its choices where a list was chosen from it; only keys of nodes hold lists.
    """
    from hydra.core.override_parser.types import OverrideType

    return (
        word.type == OverrideType.CHANGE
        and word.package is None
        and "/" not in word.key_or_group
        and ("." in word.key_or_group or not isinstance(word.value(), list))
        and not word.is_sweep_override()
        and not word.is_hydra_override()
        and _literal(word.value())
    )


def _literal(value: Any) -> bool:
    if isinstance(value, list):
        return all(_literal(element) for element in value)
    if isinstance(value, str):
        return "$" not in value and value != "???"
    return value is None or isinstance(value, bool | int | float)


def distinct(cells: Iterable[Cell]) -> list[Cell]:
    """The cells, without those that compute the same as an earlier one."""
    found: dict[Path, Cell] = {}
    for cell in cells:
        found.setdefault(cell.folder, cell)
    return list(found.values())


def home(cells: list[Cell]) -> Path:
    """The folder that holds the folders of all cells."""
    return Path(os.path.commonpath([cell.folder.parent for cell in cells]))


def done(cell: Cell) -> bool:
    return (cell.folder / "result.json").exists()


def counted(number: int) -> str:
    return "1 run" if number == 1 else f"{number} runs"


def key_of(override: str) -> str:
    return re.split("[=@]", override.lstrip("+~"))[0]
