"""The cells of a sweep, composed and checked before the first one starts: see `runner.sweep.ends` for its words."""

import copy
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.command.listing import GROUPS


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
    """Makes cells of lists of overrides. The first cell of a kind is composed by Hydra, the others from that one.

    Two cells are of one kind where their overrides have the same keys in the same order and differ only in values:
    numbers, strings, null, or lists of these, given as plain `key=value` to keys that are no groups. Hydra applies such
    overrides last, one after another, so to apply the second cell's to the first cell's composed config gives what
    Hydra would have composed, in a twentieth of the time; and to its plain dicts, where no value refers to another,
    in a hundredth.

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
        self.kinds: dict[tuple, tuple] = {}  # kind -> (config without `hydra`, choices)
        self.plain: dict[tuple, dict] = {}  # kind -> the config as plain dicts, where nothing in it refers to a key

    def __call__(self, overrides: list[str]) -> Cell:
        """Raises ConfigError, or Hydra's or OmegaConf's own error, where the cell does not compose or check."""
        from runner.command.compose import resolved
        from runner.command.config import check_all

        words = [self.parse(word) for word in overrides]
        config = self.copied(words)
        if config is None:
            cfg, choices = self.altered(words) or self.composed(overrides, words)
            config = resolved(cfg, choices)
            if not _refers(cfg):
                self.plain[self.kind(words)] = _copy(config)
        check_all(config)
        return Cell(config, list(overrides))

    def parse(self, word: str):
        if word not in self.parsed:
            self.parsed[word] = self.parser.parse_override(word)
        return self.parsed[word]

    def kind(self, words: list) -> tuple:
        return tuple(
            (word.key_or_group,) if word.key_or_group not in self.groups and _plain(word) else word.input_line
            for word in words
        )

    def copied(self, words: list) -> dict | None:
        """From an earlier cell of the same kind whose values all stand by themselves, or None where there is none."""
        kind = self.kind(words)
        if kind not in self.plain:
            return None
        config = _copy(self.plain[kind])
        for word, of_kind in zip(words, kind, strict=True):
            if isinstance(of_kind, tuple):
                *path, last = word.key_or_group.split(".")
                node = config
                for key in path:
                    node = node.get(key) if isinstance(node, dict) else None
                if not isinstance(node, dict) or last not in node or isinstance(node[last], dict):
                    return None  # Hydra says it better
                node[last] = _copy(word.value())
        return config

    def altered(self, words: list) -> tuple | None:
        """From an earlier cell of the same kind, or None where there is none."""
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        kind = self.kind(words)
        if kind not in self.kinds:
            return None
        cfg, choices = copy.deepcopy(self.kinds[kind][0]), self.kinds[kind][1]
        try:
            for word, of_kind in zip(words, kind, strict=True):
                if isinstance(of_kind, tuple):
                    OmegaConf.update(cfg, word.key_or_group, word.value(), merge=True)
        except (OmegaConfBaseException, TypeError, ValueError):
            return None  # Hydra says it better
        return cfg, choices

    def composed(self, overrides: list[str], words: list) -> tuple:
        from omegaconf import OmegaConf

        cfg = self.compose(list(overrides))
        choices = OmegaConf.to_container(cfg.hydra.runtime.choices)
        if not self.groups.issuperset(choices):
            self.groups |= set(choices)
            self.kinds.clear(), self.plain.clear()  # they were told apart without these groups
        own = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
        self.kinds[self.kind(words)] = (own, choices)
        return own, choices


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
