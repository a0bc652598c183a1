"""What goes by one target a sample, and so not with targets that have places: refused before anything is written."""

from torch import nn

from runner.command.build import kinds, locate
from runner.core.batch import Output
from runner.core.mistake import ConfigError
from runner.dataset import Dataset
from runner.engine.parts import takes
from runner.hook import Hook
from runner.loss import Loss
from runner.risk import Risk


def ids(config: dict, data: Dataset, model: nn.Module) -> None:
    """Raise ConfigError where inputs are ids and this is one of the program's models for numbers."""
    if data.vocabulary is None:
        return
    own = kinds("model")  # which imports all of them
    if type(model) not in own.values() or takes(type(model), ["vocabulary"], "__init__"):
        return
    choices, others = config["choices"], [name for name, kind in own.items() if takes(kind, ["vocabulary"], "__init__")]
    raise ConfigError(
        f"dataset={choices['dataset']} has ids, and model={choices['model']} takes numbers; those that take ids are "
        f"model={', '.join(others)}"
    )


def refuse(config: dict, data: Dataset, out: Output, loss: Loss, risk: Risk) -> None:
    """Raise ConfigError where a part of this run wants one target a sample and has several. out : the model's."""
    choices = config["choices"]
    if not data.places:
        return
    has = f"dataset={choices['dataset']} has {' x '.join(map(str, data.places))} targets a sample"
    if tuple(out.logits.shape[1:-1]) != tuple(data.places):
        raise ConfigError(
            f"{has}, and the logits of model={choices['model']} are {tuple(out.logits.shape)} for {len(out.logits)}: "
            "for texts there is model=gpt, for pixels model=unet"
        )
    if type(loss).observe is not Loss.observe:
        raise ConfigError(f"loss={choices['loss']} remembers something of every sample, and {has}")
    if type(risk).observe is not Risk.observe and data.per == "target":
        raise ConfigError(f"risk={choices['risk']} remembers every sample's loss, and {has}: set dataset.per=sample")
    if data.ignores and data.per == "target" and not risk.padding:
        raise ConfigError(
            f"risk={choices['risk']} cannot leave targets out, and {has}, of which some do not count: set "
            "dataset.per=sample, or risk=mean"
        )
    if data.ignores and choices["balance"] != "none":
        raise ConfigError(f"balance={choices['balance']} weighs by samples, and {has}, of which some do not count")
    if config["augment"]:
        raise ConfigError(f"augment={next(iter(config['augment']))} changes inputs and not their targets, and {has}")
    for name, node in config["hook"].items():
        kind = locate(node["_target_"], f"hook.{name}")
        if getattr(kind, "observe", Hook.observe) is not Hook.observe or not getattr(kind, "places", True):
            raise ConfigError(f"hook={name} goes by one target a sample, and {has}")
