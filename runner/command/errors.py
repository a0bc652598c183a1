"""Turn what Hydra and OmegaConf say about a mistyped command into one clear line."""

import re
from pathlib import Path

import yaml

from runner.command.config import GROUPS, Root
from runner.command.listing import MANY, options
from runner.core.mistake import suggest


def explain(error: Exception, overrides: list[str], folders: list[Path]) -> str:
    """One line about the first override that names nothing, else the first two lines of the error itself."""
    if message := broken(folders):
        return message
    taken = [word for word in overrides if word.startswith("~")]
    if taken and "Could not delete" in str(error):
        return f"{' '.join(taken)}: there is nothing of this name and value to take away"
    if merged := re.match(r"Error merging override (\S*)", str(error)):
        return f"{merged[1]}: what stands there is of another kind, a list or a mapping"
    for override in overrides:
        if message := _about(override, overrides, folders):
            return message
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines else type(error).__name__


def broken(folders: list[Path]) -> str | None:
    """About the first of the user's YAML files that cannot be read; None where all can."""
    from omegaconf import OmegaConf

    for path in (path for folder in folders[:-1] for path in sorted(folder.glob("**/*.yaml"))):
        try:
            whole = OmegaConf.load(path)
        except Exception as error:  # the reader has many
            said = " ".join(str(error).split()).replace(f'in "{path}", ', "")
            return f"{path}: cannot be read: {said}"
        if not OmegaConf.is_dict(whole):
            return f"{path}: must be a mapping of keys, with _target_ among them"
    return None


def _about(override: str, overrides: list[str], folders: list[Path]) -> str | None:
    key, equals, value = override.lstrip("+~").partition("=")
    key = key.partition("@")[0]
    if not equals:
        return None if override.startswith("~") else f"'{override}' is not an override: write key=value"
    if key in GROUPS:
        known = options(key, folders)
        if not value:
            return f"{key}= names no option. There are: {', '.join(known)}"
        for name in filter(None, re.split(r"[,\[\]\s'\"]+", value)):
            if name not in known and not name.startswith(("glob(", "choice(")):
                shown = ", ".join(known) if len(known) <= 12 else f"see --list {key}"
                return f"no {key} named '{name}'.{suggest(name, known)} There are: {shown}"
        return None
    if key.startswith("hydra"):
        return None
    group, _, rest = key.partition(".")
    if group in GROUPS:
        return _inside(group, rest, key, overrides, folders)
    root = yaml.safe_load((folders[-1] / "config.yaml").read_text(encoding="utf-8"))
    top = [*Root.__dataclass_fields__, "train", "sweep", *GROUPS]
    if group not in top:
        return f"no key or group '{group}'.{suggest(group, top)} There are: {', '.join(top)}"
    if group in ("train", "sweep"):
        known = list(root[group])
        if rest not in known:
            return f"no key '{key}'.{suggest(rest, known, f'{group}.')} It has: {', '.join(known)}"
    elif rest:
        return f"no key '{key}': '{group}' is a plain value, {group}=..."
    return None


def _inside(group: str, rest: str, key: str, overrides: list[str], folders: list[Path]) -> str | None:
    """Why `group.rest` is not a key of the option that this run selects, or None where it may be one."""
    every = {option: keys(path) for option, path in options(group, folders).items()}
    chosen = _chosen(group, overrides, folders)
    if group in MANY:
        option, _, argument = rest.partition(".")
        if option not in every:
            return f"no {group} named '{option}'.{suggest(option, every)} There are: {', '.join(every)}"
        if option not in chosen:
            return f"'{key}' belongs to {group}={option}, which this run does not select"
        if argument.partition(".")[0] not in every[option]:
            hint = suggest(argument, every[option], f"{group}.{option}.")
            return f"no key '{key}'.{hint} It has: {', '.join(every[option])}"
        return None
    own = every.get(chosen[0], []) if chosen else []
    if rest.partition(".")[0] in own:
        return None
    others = [option for option, known in every.items() if rest in known]
    close = suggest(rest, own, f"{group}.")
    if others and not close:
        shown = f"{group}={others[0]}" + (f" (also {', '.join(others[1:])})" if others[1:] else "")
        return f"'{key}' belongs to {shown}, which this run does not select; it has {group}={chosen[0]}"
    for other in GROUPS:  # optim=sam optim.rho=0.1: what is meant is a key of the option that sam brings along
        for option in _chosen(other, overrides, folders):
            if other != group and not close and rest in keys(options(other, folders).get(option)):
                close = f" Did you mean '{other}.{rest}'?"
    return f"no key '{key}'.{close} {group}={chosen[0]} has: {', '.join(own) or 'no keys'}"


def _chosen(group: str, overrides: list[str], folders: list[Path]) -> list[str]:
    """The options of a group that the command line, an option file on it, or config.yaml selects."""
    typed = dict(override.lstrip("+~").partition("=")[::2] for override in overrides)
    if group in typed:
        return [word for word in re.split(r"[,\[\]\s]+", typed[group]) if word]
    for other in GROUPS:
        path = options(other, folders).get(typed.get(other, ""))
        for entry in defaults(path) if path else []:
            for name, value in entry.items() if isinstance(entry, dict) else []:
                if name.startswith(f"override /{group}@"):
                    return [value]
    return [
        entry[group] for entry in defaults(folders[-1] / "config.yaml") if isinstance(entry, dict) and group in entry
    ]


def defaults(path: Path) -> list:
    """The entries of a YAML file's defaults list."""
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return content.get("defaults", [])


def keys(path: Path | None) -> list[str]:
    """The keys of an option, those of the options in its own group that it starts from included."""
    if path is None:
        return []
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    found: list[str] = []
    for entry in content.get("defaults", []):
        if isinstance(entry, str) and entry != "_self_" and (path.parent / f"{entry}.yaml").exists():
            found += keys(path.parent / f"{entry}.yaml")
    found += [name for name in content if name not in ("defaults", "_target_")]
    return list(dict.fromkeys(found))
