"""From a config node to an object, with every mistake found first and said in one line.

A node with `_target_` is checked against the signature of what it names: every key must be a parameter, every parameter
without a default must be given, every value must fit its annotation (`runner.schema` has the ranges). Parameters that
only the engine can know (the data set's classes, the parameters to optimise) are context: passed by name to whoever
asks for them, never written in a config.
"""

import difflib
import importlib
import inspect
import types
import typing
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from runner.schema import Range

CONTEXT = {"shape", "classes", "samples", "class_counts", "bag", "features", "data_dir", "cache_dir", "seed", "params"}


class ConfigError(Exception):
    """A mistake in what the user asked for: printed as one line, exit status 2."""


def suggest(word: str, known: Iterable[str], prefix: str = "") -> str:
    """' Did you mean ...?' or '', for the end of a message."""
    close = difflib.get_close_matches(word, [str(name) for name in known], n=1, cutoff=0.5)
    return f" Did you mean '{prefix}{close[0]}'?" if close else ""


def locate(path: str, where: str) -> Any:
    """The object at a dotted path. Raises ConfigError naming `where`, the config node that asked."""
    module_name, _, name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"{where}._target_: cannot import '{module_name}': {error}") from error
    except ValueError as error:
        raise ConfigError(f"{where}._target_: '{path}' is not a dotted path such as package.module.Class") from error
    if not hasattr(module, name):
        raise ConfigError(f"{where}._target_: no '{name}' in '{module_name}'.{suggest(name, vars(module))}")
    return getattr(module, name)


def parameters(target: Any) -> tuple[dict[str, inspect.Parameter], bool]:
    """(name -> parameter with evaluated annotation, whether any other keyword is accepted).

    `**settings` of a constructor means what the base class takes, so a subclass need not repeat it.
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
                found.setdefault(parameter.name, parameter.replace(annotation=annotation))
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
                return f"{'an integer' if base is int else 'a number'} {extra}"
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
    if hint is int:
        return None if isinstance(value, int) and not isinstance(value, bool) else "an integer"
    if hint is float:
        return None if isinstance(value, int | float) and not isinstance(value, bool) else "a number"
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


def check(node: dict, where: str, target: Any = None) -> None:
    """Bind one node, and the nodes inside it, to the signature of its target. Raises ConfigError."""
    target = target or locate(node["_target_"], where)
    known, open_ended = parameters(target)
    settable = [name for name in known if name not in CONTEXT or name in node]
    for key, value in node.items():
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
            if wrong := misfit(value, hint):
                shown = "null" if value is None else repr(value)
                raise ConfigError(f"{where}.{key}={shown.strip(chr(39))}: must be {wrong}")
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in node and name not in CONTEXT:
            raise ConfigError(f"{where}.{name} is missing")


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
        return target(**arguments)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
