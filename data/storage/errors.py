"""What file systems and the clients of buckets raise, as one line; the clients have no common type of error."""

import contextlib
import errno
import re
import sys
from collections.abc import Iterator

from configs.errors import UserError, one_line

_CLIENTS = ("fsspec", "gcsfs", "s3fs", "aiobotocore", "botocore", "aiohttp", "google", "requests", "urllib3", "etils")
_STATUS = "401|403|408|429|500|502|503|504"
_UNREACHABLE = re.compile(
    rf"(HTTP response code|status|code)\W{{0,4}}({_STATUS})\b|, ({_STATUS})$|\bHTTP ({_STATUS})\b"
    r"|UNAVAILABLE|UNAUTHENTICATED|PERMISSION_DENIED|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED"
    r"|forbidden|credential|\bexpired|slow ?down|reduce your request rate|access ?denied|timed? ?out|cannot connect"
    r"|connect(ion)? ?(error|refused|reset|closed|aborted)|service unavailable|could not resolve|too many requests"
    r"|internal error|internal server",
    re.IGNORECASE,
)
# The names of objects contain any word, and steps such as 500.
_NAME = re.compile(r"\S*/\S*")
_REMEDY = (
    "check the network, your credentials and the permissions on the bucket (docs/clusters.md), then run the same "
    "command again to resume"
)
# What has a cause outside of this code: no space or permission, a read-only or broken disk, a name that is too long.
_OF_FILES = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENAMETOOLONG}
)
_LONGEST_NAME = 100  # characters of a file's name in a message


class Unreachable(UserError):
    """A bucket that cannot be reached, or that refuses access: nothing follows about the objects in it."""


def describe(error: Exception) -> str:
    """Returns one line about an error of a client."""
    return f"{type(error).__name__}: {one_line(error)}; {_REMEDY}"


def is_unreachable(error: Exception) -> bool:
    """Returns whether an error says that the bucket cannot be reached or refuses access, not that an object is bad."""
    text = _NAME.sub("", f"{type(error).__name__}: {error}").strip()
    return isinstance(error, Unreachable) or bool(_UNREACHABLE.search(text))


def is_file_error(error: OSError) -> bool:
    """Returns whether an error is of the disk, its permissions or a name, not of this code or a bucket."""
    return error.errno in _OF_FILES and not _is_of_a_client(error)


@contextlib.contextmanager
def file_errors(place: str = "a file", remedy: str = "") -> Iterator[None]:
    """A context that turns an error that is of the disk, its permissions or a name into one line for the user.

    Args:
        place: what is read or written, if the error names no file; a write to a full disk does not.
        remedy: what the line ends with.
    """
    try:
        yield
    except OSError as error:
        if not is_file_error(error):
            raise
        name = str(error.filename or place)
        shown = name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..."
        raise UserError(f"{shown} cannot be read or written: {error.strerror}{remedy}") from None


@contextlib.contextmanager
def bucket_errors() -> Iterator[None]:
    """A context that turns what the clients of buckets raise into an `Unreachable`, which is one line for the user."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not _is_of_a_client(error):
            raise
        raise Unreachable(f"a bucket cannot be read or written: {describe(error)}") from None


def _is_of_a_client(error: Exception) -> bool:
    """Returns whether a client of buckets raised an error: its type is of such a library, or passed through one."""
    if "data.storage.remote" not in sys.modules:
        return False
    modules = [type(error).__module__]
    trace = error.__traceback__
    while trace is not None:
        modules.append(trace.tb_frame.f_globals.get("__name__", ""))
        trace = trace.tb_next
    return any(module.partition(".")[0] in _CLIENTS for module in modules)
