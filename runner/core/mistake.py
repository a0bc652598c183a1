"""A mistake of the user's, and what was meant."""

import difflib
from collections.abc import Iterable


class ConfigError(Exception):
    """A mistake in what the user asked for: printed as one line, exit status 2."""


def suggest(word: str, known: Iterable[str], prefix: str = "") -> str:
    """' Did you mean ...?' or '', for the end of a message."""
    close = difflib.get_close_matches(word, [str(name) for name in known], n=1, cutoff=0.5)
    return f" Did you mean '{prefix}{close[0]}'?" if close else ""


def nearest(pattern: str, names: Iterable[str]) -> str:
    """The pattern, which fits none of the names, with the three that it is most like."""
    return f"'{pattern}'; the nearest are {', '.join(difflib.get_close_matches(pattern, list(names), 3, 0.0))}"
