"""Atomic writes of small text files."""

import os
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file by one with this text; after a crash either the old or the new text is there, complete.

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
