"""Which options cannot be trained side by side with others of their kind, found out by a step of two replicas."""

import logging
from functools import lru_cache

import torch
from omegaconf import OmegaConf

from runner.command import build
from runner.command.config import LISTS, Train, check_all
from runner.command.listing import conf_dir, options
from runner.core import distributed
from runner.engine.assemble import Elsewhere, assemble, prepare
from runner.engine.packable import refuse
from runner.engine.replicas import Replicas, Unpackable
from runner.engine.trainer import Trainer
from runner.sweep.experiment import composer
from runner.sweep.kind import floats, number

GROUPS = (
    "model", "transform", "augment", "sampler", "loss", "risk", "groups", "gradient", "balance", "optim", "schedule",
    "sharpness", "quantization", "hook",
)  # fmt: skip
# What an option needs beside its name, and what keeps it small
NEEDS = {
    "cnn": ["model.widths=[4,8]", "model.hidden=16"],
    "timm": ["model.name=test_resnet"],
    "resnet20": ["model.depth=8"],
    "wrn_16_8": ["model.depth=10", "model.widen=1"],
    "vgg16_bn": ["model.depth=11"],
    "preact_resnet18": ["model.blocks=1"],
    "resnet18": ["model.depth=18"],
    "mlp": ["model.hidden=[16]"],
    "mlp_reference": ["model.hidden=[16]"],
    "dorefa": ["quantization.ends=same"],  # a small model may have no layer between the first and the last
    "reste": ["quantization.ends=same"],
    "biper": ["quantization.ends=same"],
    "littlebit": ["quantization.ends=same"],
    "eq_net": ["quantization.ends=same"],
    "classes": ["sampler.classes=2", "sampler.per_class=4"],
    "diffusion": ["model=mlp_time", "model.width=16", "model.depth=1"],
    "mlp_time": ["loss=diffusion", "model.width=16", "model.depth=1"],
    "ntxent": ["loss.out=8"],
    "wgan": ["model=mlp_generator", "model.hidden=[16]", "loss.hidden=[16]", "loss.critic_turns=2"],
    "wgan_gp": ["model=mlp_generator", "model.hidden=[16]", "loss.hidden=[16]", "loss.critic_turns=2"],
    "mlp_generator": ["loss=wgan", "model.hidden=[16]", "loss.hidden=[16]", "loss.critic_turns=2"],
    "gpt": ["model.width=8", "model.depth=1", "model.attention_heads=2"],
    "unet": ["model.width=4", "model.levels=2"],
    "groupnorm": ["model=resnet20", "model.depth=8"],
    "magnitude": ["transform.magnitude.every=1"],
}
TERMS = ["balance.of=terms", "hook=[spectral_decoupling]"]  # made-up data have no tasks
NEEDS |= dict.fromkeys(("upgrad", "pcgrad", "aligned_mtl", "mgda", "config"), TERMS)
SHAPE = [3, 16, 16]
DATA = {  # of models that are not for images with one label
    "gpt": {"shape": [6], "places": [6], "vocabulary": 4},
    "unet": {"places": SHAPE[1:]},
    "vgg16_bn": {"shape": [3, 32, 32]},
}
CLASSES = {"ensloss": 2, "anyloss": 2}  # of losses that are not defined for four


@lru_cache(maxsize=1)
def _composer():
    return composer([conf_dir()])


def compose(words: list[str]) -> dict:
    """The checked config of these words, from what earlier calls composed."""
    return _composer()(words).config


HEAVY = ("resnet18", "preact_resnet18", "vgg16_bn")  # of layers that smaller models have too; not tried


def forms(group: str) -> list[str]:
    """The options of a group; of models that are one class in several sizes, the first with a small form."""
    found = options(group, [conf_dir()])
    if group != "model":
        return list(found)
    kinds = {}
    for name in sorted(found, key=lambda name: (name not in NEEDS, name)):
        kinds.setdefault(OmegaConf.load(found[name])["_target_"], name)
    return [name for name in found if name in kinds.values()]


def words(group: str, option: str) -> list[str]:
    """A small run that differs from the default by this option."""
    chosen = f"{group}=[{option}]" if group in LISTS else f"{group}={option}"
    small = ["train.batch_size=8", "train.epochs=8", "device=cpu", chosen, *NEEDS.get(option, [])]
    return small if any(word.startswith("model=") for word in small) else [*small, "model.hidden=[16]"]


def numbers(group: str, option: str) -> list[str]:
    """The option's own numbers of type float, each changed a little."""
    node = compose(words(group, option))[group]
    where = group
    if group in LISTS:
        where, node = f"{group}.{option}", node.get(option, {})
    if group == "model" or not node:
        return []
    own = floats(build.locate(node["_target_"], where))
    changed = []
    for key, value in node.items():
        if key in own and number(value) and (value != 0 or group != "optim"):
            less = [0.9 * part for part in value] if isinstance(value, list) else 0.9 * value or 0.05
            changed.append(f"{where}.{key}={less}")
    return changed


def trainers(cells: list[list[str]], samples: int = 40, dtype: torch.dtype = torch.float32) -> list[Trainer]:
    """The cells' trainers on made-up images, which write nothing."""
    made = []
    for overrides in cells:
        config = compose(overrides)
        task = build.locate(config["loss"]["_target_"], "loss").tasks[0]
        sizes = {"train": samples, "test": 8, "shape": SHAPE, "classes": 4, "task": task}
        config["dataset"] = {"_target_": "scripts.bench.cases.MadeUp", "val": 0.0, **sizes}
        config["dataset"] |= DATA.get(config["choices"]["model"], {})
        config["dataset"]["classes"] = CLASSES.get(config["choices"]["loss"], sizes["classes"])
        check_all(config)
        train, device = Train(**config["train"]), distributed.device("cpu")
        prepare(config["seed"], train, device)
        torch.set_default_dtype(dtype)
        try:
            trainer, *_ = assemble(config, train, device, Elsewhere(None))
        finally:
            torch.set_default_dtype(torch.float32)
        trainer.tell = lambda *_: None
        trainer.model.train()
        made.append(trainer)
    return made


def why_not(group: str, option: str) -> str | None:
    """Why two runs with this option are not trained side by side, or None where they are."""
    own = words(group, option)
    try:
        members = trainers([[*own, "seed=0"], [*own, "seed=1", *numbers(group, option)]])
        refuse(members[0])
        run = Replicas(members)
        run.step(next(run.loader.epoch(0)))
    except Unpackable as reason:
        return str(reason)
    except Exception as error:
        logging.debug("%s=%s", group, option, exc_info=True)
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return None
