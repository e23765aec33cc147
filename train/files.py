"""Checks of outputs before the work that they are for."""

import os
from pathlib import Path

from configs.errors import UserError, one_line
from data.sources import match_sources
from data.storage.files import check_directory
from data.storage.new_directory import resolved
from data.storage.paths import is_remote


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
    if is_remote(path):
        _check_bucket(path.parent, path, option)
        return
    if path.exists() and not os.access(path, os.W_OK):
        raise UserError(f"--{option}={path} cannot be written: permission denied; expected another path")
    if path.exists() and not path.is_file():  # such as /dev/stdout
        return
    try:
        check_directory(path.parent)
    except OSError as error:
        raise UserError(
            f"--{option}={path} cannot be written: {path.parent}: {error.strerror}; expected a file in an existing "
            "directory that you can write to"
        ) from None


def check_not_read(path: Path, option: str, inputs: str, inputs_option: str) -> None:
    """Raises UserError if an output is one of the files of an input, by whatever path it is named.

    Args:
        path: the output.
        option: name of its flag.
        inputs: see `match_sources`.
        inputs_option: name of the input's flag.
    """
    files = (source for source in match_sources(inputs) if isinstance(source, Path))
    if resolved(path) in map(resolved, files):
        raise UserError(f"--{option}={path} is one of the files of --{inputs_option}={inputs}; expected another name")


def check_output_directory(path: Path, option: str) -> None:
    """Checks that a directory exists and can be written, or can be made; see `check_output_file`.

    Raises:
        UserError: the path or one of its parents is a file, or cannot be written.
    """
    if is_remote(path):
        _check_bucket(path, path, option)
        return
    there = next((parent for parent in (path, *path.parents) if parent.exists() or parent.is_symlink()), Path())
    try:
        check_directory(there)
    except OSError as error:
        raise UserError(
            f"--{option}={path} cannot be written: {there}: {error.strerror}; expected the path of a directory"
        ) from None


def _check_bucket(directory: Path, path: Path, option: str) -> None:
    """Checks that objects can be made and deleted below a directory of a bucket."""
    try:
        check_directory(directory)
    except Exception as error:  # the clients of buckets raise errors of many types
        raise UserError(
            f"--{option}={path} cannot be written: {one_line(error)}; expected an existing bucket in which you may "
            "create and delete objects"
        ) from None
