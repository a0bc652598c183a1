"""From overrides to a checked config, in Python: what the command does, for scripts, notebooks and tests."""

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner.command.config import LISTS, SINGLES, check_all
from runner.command.listing import conf_dir
from runner.command.spelling import spelled
from runner.command.words import one_option, parse
from runner.core.mistake import ConfigError


def resolved(cfg: DictConfig, choices: dict) -> dict:
    """A composed config as plain dicts, without Hydra's own node and with the names of the chosen options.

    Raises ConfigError where an interpolation leads nowhere.
    """
    own = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    try:
        config = OmegaConf.to_container(own, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    for group in SINGLES:
        if config.get(group) is not None and choices.get(group) is None:  # Hydra merges a list's options in silence
            raise ConfigError(one_option(group))
    for group in LISTS:
        config[group] = config.get(group) or {}  # `~hook` takes the node away
    config["choices"] = {group: choices.get(group) for group in SINGLES} | {g: list(config[g]) for g in LISTS}
    return config


def compose(*overrides: str) -> dict:
    """The config of `python -m runner *overrides`, checked, for `runner.engine.run.run`.

    Raises ConfigError or Hydra's own.
    """
    words = spelled(overrides, [conf_dir()], sweep=False)
    for word in words:
        parse(word)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = hydra_compose("config", words, return_hydra_config=True)
    config = resolved(cfg, OmegaConf.to_container(cfg.hydra.runtime.choices))
    check_all(config)
    return config
