"""What a path is: `at` turns what a user wrote into a path of this machine (pathlib) or of a bucket (`RemotePath`).

A `RemotePath` has the methods of `pathlib.Path` that this code uses. A bucket differs in three ways: an object is
written whole or not at all, nothing can be appended or renamed, and a directory is only a common prefix of names.
"""

import importlib
import os
import re
from pathlib import Path

from configs.errors import UserError

# scheme: (what it needs, the extra that installs it)
SCHEMES = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}
_EXPECTED = "a local path, gs://BUCKET/NAME or s3://BUCKET/NAME"
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)


def is_url(text: str | os.PathLike[str]) -> bool:
    """Returns whether a text names an object or a prefix of a bucket; no other URLs exist, see `at`."""
    return os.fspath(text).startswith(tuple(f"{scheme}://" for scheme in SCHEMES))


def check_url(text: str) -> None:
    """Raises UserError for a URL that is not of a supported bucket; a local path passes."""
    slip = re.match(r"(gs|s3):/(?!/)", text)
    if slip:
        raise UserError(f"{text!r} has one slash after {slip[1]}:; expected {_EXPECTED}")
    found = _URL.match(text)
    if found is None:
        return
    scheme, name = found.groups()
    if scheme not in SCHEMES:
        raise UserError(f"{text!r}: {scheme}:// is not supported; expected {_EXPECTED}")
    bucket, *parts = name.rstrip("/").split("/")
    if not bucket:
        raise UserError(f"{text!r} does not name a bucket; expected {_EXPECTED}")
    # Several patterns separated by commas are checked one by one when they are matched.
    if {"", ".", ".."} & set(parts) and "," not in name:
        raise UserError(f"{text!r} has an empty part, '.' or '..', which buckets do not resolve; expected {_EXPECTED}")


def at(text: str | os.PathLike[str]) -> Path:
    """Returns the path that a text names.

    The libraries of a bucket are imported here, and only if one is used.

    Raises:
        UserError: a URL of another scheme or without a bucket, or the extra for its scheme is not installed.
    """
    text = os.fspath(text)
    check_url(text)
    if not is_url(text):
        return Path(text)
    needed, extra = SCHEMES[text.partition("://")[0]]
    try:
        importlib.import_module(needed)
    except ImportError:
        raise UserError(f"{text} needs {needed}: pip install -e '.[{extra}]'") from None
    from data.storage.remote import RemotePath

    # Not a pathlib.Path, whose constructor knows only this machine; it has the same methods.
    return RemotePath(text.rstrip("/"))


def is_remote(path: Path) -> bool:
    """Returns whether a path is of a bucket."""
    return is_url(path)
