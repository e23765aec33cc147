"""The one exception that ends a command with a single line instead of a traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A wrong input: names the field or file, what was found and what is legal, in one line."""


def did_you_mean(name: str, legal: Iterable[str]) -> str:
    """Returns "; did you mean 'x'?" for the legal name closest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(legal), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
