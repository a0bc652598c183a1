"""What runs of one kind have in common: all but their seed and the numbers that replicas may differ in."""

from functools import lru_cache
from typing import Annotated, Any, get_args, get_origin

from runner.command.build import locate, parameters
from runner.command.config import LISTS, SINGLES
from runner.core.schema import Range


def structure(config: dict) -> dict:
    """The config with a placeholder for every number that replicas may differ in."""
    same = {key: value for key, value in config.items() if key not in ("seed", "sweep", "choices", *SINGLES, *LISTS)}
    same["checkpoint"] = same.get("checkpoint") is not None  # whether: the weights may be different ones
    for group in SINGLES:
        same[group] = _structure(config[group], group)
    for group in LISTS:
        same[group] = {name: _structure(node, f"{group}.{name}") for name, node in config[group].items()}
    return same


def _structure(node: dict, where: str) -> dict:
    floating, found = floats(locate(node["_target_"], where)), {}
    for key, value in node.items():
        if isinstance(value, dict) and "_target_" in value:
            found[key] = _structure(value, f"{where}.{key}")
        elif key == "damage_seed" and value is not None:
            found[key] = "seed"
        elif key in floating and where != "model" and (kind := number(value)):
            # a term that an optimizer leaves out at zero has no state there
            found[key] = f"{kind} (zero)" if where == "optim" and value == 0 else kind
        else:
            found[key] = value
    return found


@lru_cache(maxsize=1024)
def floats(target: Any) -> frozenset[str]:
    """The keys that take a float, by the constructor's annotation or default."""

    def is_float(hint: Any) -> bool:
        if get_origin(hint) is Annotated:
            base, *extras = get_args(hint)
            return is_float(base) and not any(isinstance(extra, Range) and extra.alike for extra in extras)
        return hint is float or any(is_float(part) for part in get_args(hint))

    def takes(parameter) -> bool:
        hint = parameter.annotation
        return type(parameter.default) is float if hint is parameter.empty else is_float(hint)

    return frozenset(key for key, parameter in parameters(target)[0].items() if takes(parameter))


def number(value: Any) -> str | None:
    """A placeholder for a float, or for several; None for anything else."""
    numbers = value if isinstance(value, list) else [value]
    if not numbers or any(isinstance(number, bool) or not isinstance(number, int | float) for number in numbers):
        return None
    return f"{len(numbers)} numbers" if isinstance(value, list) else "number"
