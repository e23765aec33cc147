"""Atomic writes of small text files."""

import os
from pathlib import Path


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
