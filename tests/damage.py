"""Damages a checkpoint on disk, as a failing disk would."""

from pathlib import Path


def largest_file(directory: Path) -> Path:
    """Returns the file of a checkpoint's largest leaf, which contains only the bytes of that leaf."""
    leaves = (path for path in directory.rglob("*") if path.is_file() and path.name[0].isdecimal())
    return max(leaves, key=lambda path: path.stat().st_size)


def flip_a_bit(directory: Path) -> None:
    """Flips one bit in the middle of a checkpoint's largest leaf."""
    file = largest_file(directory)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
