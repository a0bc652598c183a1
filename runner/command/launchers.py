"""What Hydra asks of the words of a sweep, and says of launchers and sweepers that are not there."""

from runner.command.listing import GROUPS

PLUGINS = {
    "hydra/launcher": "hydra-joblib-launcher, hydra-submitit-launcher",
    "hydra/sweeper": "hydra-optuna-sweeper",
}


def with_options(argv: list[str]) -> list[str]:
    """In a sweep over options, a key of an option's becomes a sweep of one value.

    Hydra applies what is not swept to the options of config.yaml too, which need not have the key:
    `sharpness=sam,asam sharpness.rho=0.1`.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import OverrideType
    from hydra.errors import HydraException

    if not {"-m", "--multirun"} & set(argv):
        return argv
    parser, found = OverridesParser.create(), []
    for text in argv:
        try:
            found.append(parser.parse_override(text))
        except HydraException:  # a flag or its value, or a mistake that Hydra names
            found.append(None)
    if not any(word and word.key_or_group in GROUPS and word.is_sweep_override() for word in found):
        return argv

    def one_of_one(text: str, word) -> str:
        group, dot, _ = word.key_or_group.partition(".") if word else ("", "", "")
        if not dot or group not in GROUPS or word.type != OverrideType.CHANGE or word.is_sweep_override():
            return text
        value = text.partition("=")[2]
        return f"{word.key_or_group}=choice({value or chr(39) * 2})"  # of nothing typed, the empty string

    return list(map(one_of_one, argv, found))


def missing_plugin(error: Exception) -> str | None:
    """About a launcher or a sweeper that is not here; None where that is not the trouble."""
    kind, _, name = (getattr(error, "missing_cfg_file", None) or "").rpartition("/")
    if kind not in PLUGINS:
        return None
    from runner.core.mistake import suggest

    known = error.options or []
    more = f"Others are packages of their own: pip install {PLUGINS[kind]}, ..."
    return f"no {kind.partition('/')[2]} named '{name}'.{suggest(name, known)} There are: {', '.join(known)}. {more}"
