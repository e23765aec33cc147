"""The one exception that ends a command with a single line instead of a traceback, and how that line is written."""

import difflib
import os
import sys
from collections.abc import Iterable
from typing import NoReturn


class UserError(Exception):
    """A wrong input: names the field or file, what was found and what is expected, in one line."""


def one_line(error: Exception, limit: int = 200) -> str:
    """Returns the message of an exception on one line of at most `limit` characters, or its type if it has none."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


def did_you_mean(name: str, legal: Iterable[str]) -> str:
    """Returns "; did you mean 'x'?" for the legal name closest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(legal), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def end(message: str, code: int) -> NoReturn:
    """Writes the one line of an error and ends the process."""
    print(f"rootstock: error: {message}", file=sys.stderr)
    # Skips the exit handlers of half-built runtimes, which would bury the line under tracebacks.
    sys.stderr.flush()
    sys.stdout.flush()
    os._exit(code)
