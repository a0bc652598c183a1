"""What a run is called: a digest of what it computes, and the folder of that name."""

import hashlib
import json
from pathlib import Path

# What does not change the numbers that a run computes is not part of its identity
APART = {"name", "device", "data_dir", "cache_dir", "outputs_dir", "logger", "choices", "sweep"}
APART_TRAIN = {"workers", "eval_batch_size", "save_minutes", "threads"}

# Groups that came after runs had been made, with the option that says what was so for all of those, and its node
LATER = {
    "sampler": ("shuffle", {"_target_": "runner.sampler.Sampler"}),
    "balance": ("none", {"_target_": "runner.balance.Balance"}),
    "transform": ("none", {}),
    "groups": ("one", {"_target_": "runner.groups.Groups"}),
    "gradient": ("backprop", {"_target_": "runner.gradient.Gradient"}),
}


def apart(config: dict) -> set[str]:
    """The keys of this config that are no part of what it computes, and those that a config of earlier had not and
    that say what was so then."""
    return APART | {group for group, (_, plain) in LATER.items() if config.get(group, plain) == plain}


def identity(config: dict) -> str:
    """Ten hexadecimal digits of what a run computes: its config less what does not change the result.

    Of `checkpoint` the weights count, wherever they lie. Raises ConfigError where there are none.
    """
    core = {key: value for key, value in config.items() if key not in apart(config) and key != "checkpoint"}
    if where := config.get("checkpoint"):
        from runner.record import origin  # not above: a config without one needs no torch

        core["checkpoint"] = origin.digest(where)
    if "augment" in core:  # as runs were called before augmentations had the key
        core["augment"] = {name: _without(node, views=None) for name, node in core["augment"].items()}
    core["train"] = {key: value for key, value in config["train"].items() if key not in APART_TRAIN}
    if core["train"].get("channels_last") == "auto":
        core["train"]["channels_last"] = False  # as such runs were called before there was `auto`
    return hashlib.sha256(json.dumps(core, sort_keys=True).encode()).hexdigest()[:10]


def _without(node: dict, **plain) -> dict:
    """A node less the keys that came later and that say what was so before."""
    return {key: value for key, value in node.items() if key not in plain or value != plain[key]}


def folder(config: dict) -> Path:
    return Path(config["outputs_dir"]).expanduser().absolute() / config["name"] / identity(config)
