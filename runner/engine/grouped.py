"""Weights in slices and an optimizer over them: by what it treats apart, and by the factors of `groups`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from runner.command.build import build, locate
from runner.core.layout import Named, layouts, named
from runner.core.mistake import ConfigError
from runner.core.weights import Weights
from runner.groups import Groups


@dataclass(frozen=True)
class Key:
    """What tensors of one slice have in common."""

    player: str | None  # whose turn they step in, where there are several
    part: str | None  # of an optimizer with a `split`: the role, where it is one of those, else "rest"
    lr: float
    weight_decay: float


def divided(
    config: dict, groups: Groups, *modules: nn.Module, players: list[str] | None = None
) -> tuple[Weights, list[Named]]:
    """The modules' weights in slices, and what its tensors are. players : whose they are.

    Raises ConfigError where `groups` makes no sense.
    """
    tensors = named(*modules)
    split = getattr(locate(config["optim"]["_target_"], "optim"), "split", ())
    try:
        factors = list(groups(tensors))
    except ValueError as error:
        raise ConfigError(f"groups: {error}") from error
    if len(factors) != len(tensors) or not all(len(pair) == 2 and min(pair) >= 0 for pair in factors):
        raise ConfigError(
            f"groups: {type(groups).__name__} must give a factor of lr and one of weight_decay, none below 0, for each "
            f"of {len(tensors)} tensors"
        )
    parts = [(tensor.role if tensor.role in split else "rest") if split else None for tensor in tensors]
    whose = players or [None] * len(tensors)
    keys = [Key(*own, *map(float, pair)) for *own, pair in zip(whose, parts, factors, strict=True)]
    return Weights(*modules, keys=keys), tensors


Make = Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]


def optimizer(node: dict, weights: Weights, tensors: list[Named]) -> tuple[Make, list[nn.Parameter]]:
    """What makes the optimizer of parameters like these, and the parameters: slices where it is flat, else tensors."""
    flat = getattr(locate(node["_target_"], "optim"), "flat", False)
    keys = list(dict.fromkeys(weights.keys))
    sizes = [1] * len(keys) if flat else [weights.keys.count(key) for key in keys]
    more = {"layouts": layouts(weights, tensors)} if flat else {}

    def make(params: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        if keys == [Key(None, None, 1.0, 1.0)]:
            return build(node, "optim", params=list(params), **more)
        left = iter(params)
        groups = [
            {"params": [next(left) for _ in range(size)]} | ({} if key.part is None else {"part": key.part})
            for key, size in zip(keys, sizes, strict=True)
        ]
        made = build(node, "optim", params=groups, **more)
        for group, key in zip(made.param_groups, keys, strict=True):
            for name in ("lr", "weight_decay"):
                if name in group:
                    group[name] = group[name] * getattr(key, name)
        return made

    return make, weights.slices if flat else weights.parameters


def lines(choice: str, weights: Weights, tensors: list[Named], made: torch.optim.Optimizer) -> list[str]:
    """What the groups are, and what of them has no effect."""
    found, name = [], f"groups={choice}"
    for pair in dict.fromkeys((key.lr, key.weight_decay) for key in weights.keys):
        own = [t.role for t, key in zip(tensors, weights.keys, strict=True) if (key.lr, key.weight_decay) == pair]
        if pair != (1.0, 1.0):
            of = f"{len(own)} of {len(tensors)} tensors ({', '.join(sorted(set(own)))})"
            found.append(f"{name}: {of} have lr x{pair[0]:g}, weight decay x{pair[1]:g}")
    decays = [group["weight_decay"] for group in made.param_groups if "weight_decay" in group]
    if found and not any(decays) and all(key.lr == 1 for key in weights.keys):
        found = [f"{name} has no effect: there is no weight decay in optim"]
    return found
