"""`UserError`, which ends a command with one line instead of a traceback, and helpers to write that line."""

import contextlib
import difflib
import os
import sys
from collections.abc import Iterable
from typing import NoReturn


class UserError(Exception):
    """Invalid input: one line that names the field or file, the value found and what was expected."""


def one_line(error: Exception, limit: int = 200) -> str:
    """Returns the message of an exception on one line of at most `limit` characters, or its type if it has none."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns "; did you mean 'x'?" for the known name closest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def end(message: str, code: int) -> NoReturn:
    """Writes the one line of an error and ends the process."""
    # Whoever read the output may be gone.
    with contextlib.suppress(OSError):
        print(f"rootstock: error: {message}", file=sys.stderr, flush=True)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    # Skips the exit handlers of half-built runtimes, which would bury the line under tracebacks.
    os._exit(code)
