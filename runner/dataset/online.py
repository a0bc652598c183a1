"""Whether the Hugging Face hub answers, found out before its clients spend half a minute on trying again."""

import sys
from contextlib import contextmanager

SECONDS = 5.0  # to connect, and to answer


def reachable() -> str | None:
    """None where the hub answers at all, through the proxy where one is set; else why not, in one line."""
    from huggingface_hub import constants, get_session

    if any(getattr(told, "HF_HUB_OFFLINE", False) for told in (constants, sys.modules.get("datasets.config"))):
        return "HF_HUB_OFFLINE or HF_DATASETS_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception as error:  # of whichever HTTP client the installed version uses
        reason = (str(error).splitlines() or [""])[0]
        return f"{constants.ENDPOINT} does not answer: {reason or type(error).__name__}"
    return None


@contextmanager
def at_once():
    """Inside, clients of the hub use what they have cached, without trying to connect, where it does not answer.

    Yields what `reachable` says.
    """
    from huggingface_hub import constants

    wrong = reachable()
    flags = [constants, sys.modules.get("datasets.config")] if wrong else []
    before = [(flag, flag.HF_HUB_OFFLINE) for flag in flags if flag is not None]
    for flag, _ in before:
        flag.HF_HUB_OFFLINE = True
    try:
        yield wrong
    finally:
        for flag, value in before:
            flag.HF_HUB_OFFLINE = value
