"""From a config node to an object, with every mistake found first and said in one line.

A node with `_target_` is checked against the signature of what it names: every key must be a parameter, every parameter
without a default must be given, every value must fit its annotation (`runner.core.schema` has the ranges). Parameters
that only the engine can know (the data set's classes, the parameters to optimise) are context: passed by name to
whoever asks for them, never written in a config.
"""

import importlib
import inspect
import types
import typing
from collections.abc import Callable, Iterable
from math import inf, isfinite
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from runner.command.listing import GROUPS, MANY, conf_dir, options
from runner.core.blame import blame, source
from runner.core.mistake import ConfigError, suggest
from runner.core.schema import Range, When, beyond

CONTEXT = {"shape", "bounds", "classes", "vocabulary", "heads", "samples", "class_counts", "bag"}  # of the data
CONTEXT |= {"features"}  # of the model
CONTEXT |= {"data_dir", "cache_dir", "seed", "params", "layouts"}


class _Handed:
    def __repr__(self) -> str:
        return "the class's own"


HANDED = _Handed()  # what stands for a base class's argument that is not written in a config


def locate(path: Any, where: str) -> Any:
    """The object at a dotted path. Raises ConfigError naming `where`, the config node that asked, and where a module
    cannot be imported, its file and line."""
    module_name, dot, name = path.rpartition(".") if isinstance(path, str) else ("", "", "")
    if not (module_name and name) or not all(part.isidentifier() for part in path.split(".")):
        raise ConfigError(f"{where}._target_={short(path)}: must be a dotted path such as package.module.Class")
    try:
        module = importlib.import_module(module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever a user's file does while it is imported, SystemExit included
        raise ConfigError(f"{where}._target_: cannot import '{module_name}': {blame(error)}") from error
    if not hasattr(module, name):
        public = [word for word, value in vars(module).items() if callable(value) and not word.startswith("_")]
        raise ConfigError(f"{where}._target_: no '{name}' in '{module_name}'.{suggest(name, public)}")
    found = getattr(module, name)
    if not callable(found):
        raise ConfigError(f"{where}._target_={path}: must be a class, and this is {_a(type(found).__name__)}")
    return found


def kinds(group: str) -> dict[str, Any]:
    """Option -> class, of the options that come with the program."""
    import yaml

    files = options(group, [conf_dir()]).items()
    return {name: locate(yaml.safe_load(path.read_text())["_target_"], group) for name, path in files}


def _a(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


# What an option of each group has to be, where that is not `runner.<group>.<Group>`
_BASES = {"model": "torch.nn.Module", "optim": "torch.optim.Optimizer", "quantization": "runner.quantization.Transform"}


def base(group: str) -> tuple[type, str]:
    """What every option of the group is a subclass of, and its dotted name."""
    path = _BASES.get(group, f"runner.{group}.{group.capitalize()}")
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name), path


def fits(group: str, target: Any, where: str) -> None:
    """Refuse a class that is no option of this group, or an object that a function has made instead of one."""
    wanted, path = base(group)
    if isinstance(target, type) and issubclass(target, wanted) or isinstance(target, wanted):
        return
    if not isinstance(target, type) and inspect.isroutine(target):
        return  # a function: what it returns is looked at
    kind = target if isinstance(target, type) else type(target)
    raise ConfigError(f"{where}: {kind.__name__}{source(kind)} is no {path}, which every option of '{group}' is")


def parameters(target: Any) -> tuple[dict[str, inspect.Parameter], bool]:
    """(name -> parameter with evaluated annotation, whether any other keyword is accepted).

    `**settings` of a constructor means what the base class takes, so a subclass need not repeat it. What a base class
    cannot do without the subclass may hand it itself, as those of torch.optim.Optimizer do with `defaults`: such a
    parameter has `HANDED` for its default, and a constructor that is not given it says so.
    """
    found: dict[str, inspect.Parameter] = {}
    inits = [c.__init__ for c in target.__mro__ if "__init__" in vars(c)] if inspect.isclass(target) else [target]
    for init in inits:
        if init is object.__init__:
            return found, False
        try:
            hints = typing.get_type_hints(init, include_extras=True)
        except (NameError, TypeError):  # a third party's annotation that does not evaluate: check by default value
            hints = {}
        signature = list(inspect.signature(init).parameters.values())
        signature = signature[1:] if inspect.isclass(target) else signature
        for parameter in signature:
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                annotation = hints.get(parameter.name, parameter.empty)
                inherited = init is not inits[0] and parameter.default is parameter.empty
                default = HANDED if inherited else parameter.default
                found.setdefault(parameter.name, parameter.replace(annotation=annotation, default=default))
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature):
            return found, False
    return found, True


def misfit(value: Any, hint: Any) -> str | None:
    """What `value` should have been, or None where it fits `hint`. Unknown annotations accept anything but a string
    where a number is the default's type; that is the caller's `hint`."""
    origin = get_origin(hint)
    if hint in (inspect.Parameter.empty, Any):
        return None
    if origin is Annotated:
        base, *extras = get_args(hint)
        wrong = misfit(value, base)
        for extra in extras:
            if isinstance(extra, Range) and (wrong or value not in extra):
                limit = None
                if is_number(value) and extra.high == inf:
                    limit = beyond(value if base is int else as_float(value))
                return f"{'an integer' if base is int else 'a number'} {extra}" + (f" and {limit}" if limit else "")
        return wrong
    if origin in (Union, types.UnionType):
        wrongs = [misfit(value, choice) for choice in get_args(hint)]
        return None if None in wrongs else " or ".join(dict.fromkeys(w for w in wrongs if w))
    if origin is Literal:
        choices = get_args(hint)
        text = ", ".join(str(choice) for choice in choices)
        hinted = suggest(value, choices) if isinstance(value, str) else ""
        return None if any(value == c and type(value) is type(c) for c in choices) else f"one of {text}{hinted}"
    if hint in (None, type(None)):
        return None if value is None else "null"
    if hint is bool:
        return None if isinstance(value, bool) else "true or false"
    if hint in (int, float):
        kind = "an integer" if hint is int else "a number"
        if not is_number(value) or hint is int and isinstance(value, float):
            return kind
        limit = beyond(value if hint is int else as_float(value))
        return f"{kind} {limit}" if limit else None
    if hint is str:
        return None if isinstance(value, str) else "a string"
    if origin in (list, tuple) or hint in (list, tuple) or getattr(origin, "__name__", "") in ("Sequence", "Iterable"):
        if not isinstance(value, list | tuple):
            return "a list"
        arguments = [a for a in get_args(hint) if a is not Ellipsis]
        if origin is tuple and Ellipsis not in get_args(hint) and arguments and len(arguments) != len(value):
            return f"a list of {len(arguments)}"
        each = arguments if len(arguments) == len(value) else arguments[:1] * len(value)
        for element, element_hint in zip(value, each, strict=False):
            if wrong := misfit(element, element_hint):
                return f"a list where each element is {wrong}"
        return None
    if origin is dict or hint is dict:
        of = list(zip(get_args(hint), ("keys", "values"), strict=False))
        pairs = value.items() if isinstance(value, dict) else ()
        wrongs = [
            f"a mapping whose {what} are {w}" for p in pairs for v, (h, what) in zip(p, of) if (w := misfit(v, h))
        ]
        return "a mapping" if not isinstance(value, dict) else next(iter(wrongs), None)
    if isinstance(hint, type):  # Tensor, Module and the like cannot come from a config
        return None if isinstance(value, hint) else f"a {hint.__name__}"
    return None


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def as_float(value: float) -> float:
    """Infinity for an integer that no float holds."""
    try:
        return float(value)
    except OverflowError:
        return inf if value > 0 else -inf


def settled(value: Any, hint: Any) -> Any:
    """The value as its parameter takes it: 1e1 is ten where integers are asked for, and an integer of more than 64 bits
    is a float where numbers are. What does not fit stays as it is."""

    def changed(value: Any, change: Callable) -> Any:
        return [changed(element, change) for element in value] if isinstance(value, list) else change(value)

    def whole(x: Any) -> Any:
        return int(x) if isinstance(x, float) and x.is_integer() else x

    if misfit(value, hint):
        rounded = changed(value, whole)
        return value if misfit(rounded, hint) else rounded
    return changed(value, lambda x: float(x) if is_number(x) and isinstance(x, int) and beyond(x) else x)


def short(value: Any) -> str:
    """A value as one would type it, cut where it is long."""
    try:
        text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    except ValueError:  # an integer of thousands of digits
        text = f"an integer of {value.bit_length() * 3 // 10} digits"
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def check(node: dict, where: str, target: Any = None) -> None:
    """Bind one node, and the nodes inside it, to the signature of its target; values become what `settled` makes of
    them. Raises ConfigError."""
    target = target or locate(node["_target_"], where)
    known, open_ended = parameters(target)
    own = [name for name, parameter in known.items() if parameter.default is not HANDED]
    settable = [name for name in own if name not in CONTEXT or name in node]
    for key, value in list(node.items()):
        if key == "_target_":
            continue
        if key not in known and not open_ended:
            raise ConfigError(
                f"no key '{where}.{key}'.{suggest(key, settable, f'{where}.')} It has: {', '.join(settable)}"
            )
        if isinstance(value, dict) and "_target_" in value:
            check(value, f"{where}.{key}")
            continue
        if key in known:
            parameter = known[key]
            hint = parameter.annotation
            if hint is parameter.empty and isinstance(parameter.default, bool | int | float | str):
                hint = float if type(parameter.default) is int else type(parameter.default)
            if isinstance(value, float) and not isfinite(value) and value == parameter.default:
                continue
            node[key] = value = settled(value, hint)
            if wrong := misfit(value, hint):
                if wrong == "a mapping":
                    wrong += f", in quotes for the shell: '{where}.{key}={{a: 1, b: 2}}'"
                raise ConfigError(f"{where}.{key}={short(value)}: must be {wrong}")
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in node and name not in CONTEXT:
            raise ConfigError(f"{where}.{name} is missing")


def idle(node: dict, where: str, target: Any, typed: Iterable[str]) -> dict[str, str]:
    """Of the keys `<where>.<name>` that were typed those that do nothing beside the others of their node, and why: what
    their parameters say with `When`. The node has been checked."""
    found, known = {}, parameters(target)[0]
    for key in typed:
        parameter = known.get(key.removeprefix(f"{where}."))
        needs = [extra for extra in get_args(parameter.annotation) if isinstance(extra, When)] if parameter else []
        if not key.startswith(f"{where}.") or not needs:
            continue
        beside = {need.key: node.get(need.key, known[need.key].default) for need in needs}
        if not any(need.acts(beside[need.key]) for need in needs):
            wanted = " or ".join(f"{where}.{need.key} {need}" for need in needs)
            has = ", ".join(f"{where}.{name}={short(value)}" for name, value in beside.items())
            found[key] = f"{key} does nothing here: it acts where {wanted}, and here {has}"
    return found


def build(node: dict, where: str, **context: Any) -> Any:
    """Construct a checked node; the constructor gets from the context what it asks for by name."""
    target = locate(node["_target_"], where)
    known, _ = parameters(target)
    arguments = {name: value for name, value in context.items() if name in known}
    for key, value in node.items():
        if key != "_target_":
            nested = isinstance(value, dict) and "_target_" in value
            arguments[key] = build(value, f"{where}.{key}", **context) if nested else value
    try:
        made = target(**arguments)
    except (ConfigError, KeyboardInterrupt):
        raise
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    except BaseException as error:  # whatever a constructor does, SystemExit included
        raise ConfigError(f"{where}: {target.__name__} cannot be built: {blame(error)}") from error
    group = where.partition(".")[0]
    if not isinstance(target, type) and (where in GROUPS or group in MANY):
        fits(group, made, f"{where}, as {target.__name__}{source(target)} made it")
    return made
