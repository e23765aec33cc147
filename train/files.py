"""Atomic writes of small text files, and checks of outputs before the work that they are for."""

import os
import tempfile
from pathlib import Path

from configs.errors import UserError


def write_atomically(path: Path, text: str) -> None:
    """Replaces the contents of a file; after a crash the file has either the old or the new text, complete.

    Raises:
        OSError: the directory is missing, read-only or full; the old file is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_output_file(path: Path, option: str) -> None:
    """Checks that a file can be written, without changing it; called before the work whose result it will contain.

    Args:
        path: the file.
        option: name of the flag, for the error message.

    Raises:
        UserError: the path is a directory, its directory is missing, or either cannot be written.
    """
    if path.is_dir():
        raise UserError(f"--{option}={path} is a directory; expected the path of a file")
    if path.exists() and not os.access(path, os.W_OK):
        raise UserError(f"--{option}={path} cannot be written: permission denied; expected another path")
    if path.exists() and not path.is_file():  # such as /dev/stdout
        return
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(
            f"--{option}={path} cannot be written: {path.parent}: {error.strerror}; expected a file in an existing "
            "directory that you can write to"
        ) from None


def check_output_directory(path: Path, option: str) -> None:
    """Checks that a directory exists and can be written, or can be made; see `check_output_file`.

    Raises:
        UserError: the path or one of its parents is a file, or cannot be written.
    """
    there = next((parent for parent in (path, *path.parents) if parent.exists() or parent.is_symlink()), Path())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UserError(
            f"--{option}={path} cannot be written: {there}: {error.strerror}; expected the path of a directory"
        ) from None
