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

# Keys that came later, by node, with the value that says what was so before; of `augment`, of every option
LATER_KEYS = {
    "train": {"test": True, "patience": None, "best_by": None, "keep": "none"},
    "dataset": {"split_seed": None, "stratify": False},
    "augment": {"views": None},
}


def earlier(config: dict) -> dict:
    """The config less the keys of LATER_KEYS where they say what was so before there were any."""

    def without(node: dict, plain: dict) -> dict:
        return {key: value for key, value in node.items() if key not in plain or value != plain[key]}

    found = config | {key: without(config.get(key, {}), LATER_KEYS[key]) for key in ("train", "dataset")}
    if "augment" in config:
        found["augment"] = {name: without(node, LATER_KEYS["augment"]) for name, node in config["augment"].items()}
    return found


def apart(config: dict) -> set[str]:
    """The keys of this config that are no part of what it computes, and those that a config of earlier had not and
    that say what was so then."""
    return APART | {group for group, (_, plain) in LATER.items() if config.get(group, plain) == plain}


def identity(config: dict) -> str:
    """Ten hexadecimal digits of what a run computes: its config less what does not change the result.

    Of `checkpoint` the weights count, wherever they lie. Raises ConfigError where there are none.
    """
    config = earlier(config)
    core = {key: value for key, value in config.items() if key not in apart(config) and key != "checkpoint"}
    if where := config.get("checkpoint"):
        from runner.record import origin  # not above: a config without one needs no torch

        core["checkpoint"] = origin.digest(where)
    core["train"] = {key: value for key, value in config["train"].items() if key not in APART_TRAIN}
    if core["train"].get("channels_last") == "auto":
        core["train"]["channels_last"] = False  # as such runs were called before there was `auto`
    return hashlib.sha256(json.dumps(core, sort_keys=True).encode()).hexdigest()[:10]


def folder(config: dict) -> Path:
    return Path(config["outputs_dir"]).expanduser().absolute() / config["name"] / identity(config)
