"""Directories that appear only when they are complete, so that a command that failed can simply run again."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from configs.errors import UserError


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yields a temporary directory that is renamed to `path` when the block ends, or removed if it raises.

    Raises:
        UserError: `path` exists and is not an empty directory, or cannot be written.
    """
    check_new(path)
    # Next to `path`, because a rename is atomic only within one file system.
    temporary = path.absolute().with_name(f".{path.absolute().name}.partial-{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
    try:
        yield temporary
        try:
            os.replace(temporary, path)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_new(path: Path) -> None:
    """Raises UserError if `path` exists and is not an empty directory."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{path} exists and is not empty; expected a new directory")
