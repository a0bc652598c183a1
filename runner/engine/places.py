"""What goes by one target a sample, and so not with targets that have places: refused before anything is written."""

from typing import TYPE_CHECKING

from runner.core.mistake import ConfigError
from runner.loss import Loss
from runner.risk import Risk

if TYPE_CHECKING:
    from runner.engine.trainer import Trainer


def refuse(run: "Trainer", config: dict) -> None:
    """Raise ConfigError where a part of this run wants one target a sample and has several."""
    data, choices = run.dataset, config["choices"]
    if not data.places:
        return
    has = f"dataset={choices['dataset']} has {' x '.join(map(str, data.places))} targets a sample"
    if type(run.loss).observe is not Loss.observe:
        raise ConfigError(f"loss={choices['loss']} remembers something of every sample, and {has}")
    if type(run.risk).observe is not Risk.observe and data.per == "target":
        raise ConfigError(f"risk={choices['risk']} remembers every sample's loss, and {has}: set dataset.per=sample")
    if data.ignores and data.per == "target" and not run.risk.padding:
        raise ConfigError(
            f"risk={choices['risk']} cannot leave targets out, and {has}, of which some do not count: set "
            "dataset.per=sample, or risk=mean"
        )
    if data.ignores and run.balance is not None:
        raise ConfigError(f"balance={choices['balance']} weighs by samples, and {has}, of which some do not count")
    if config["augment"]:
        raise ConfigError(f"augment={next(iter(config['augment']))} changes inputs and not their targets, and {has}")
