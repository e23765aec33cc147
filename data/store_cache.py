"""A copy on this machine of a token store in a bucket, for whoever prefers one download to reading in place."""

import fcntl
import hashlib
import json
from pathlib import Path

from configs.errors import UserError
from data.storage.files import copy_tree
from data.storage.new_directory import new_directory
from data.storage.paths import is_remote
from data.store import is_store, read_manifest
from data.store_check import verify_store


def cached_store(path: Path, cache: str) -> Path:
    """Returns a store on this machine with the content of the one at `path`, or `path` if there is nothing to copy.

    The copy is made once per content, however many processes of a host ask for it, and its checksums are compared.

    Args:
        path: the store.
        cache: `config.data.cache`: a directory of copies; "": read in place.

    Raises:
        UserError: the store is damaged, or the directory cannot be written.
    """
    if not cache or not is_remote(path):
        return path
    manifest = read_manifest(path)
    content = json.dumps([manifest["tokenizer_sha256"], manifest["splits"]], sort_keys=True)
    name = hashlib.sha256(content.encode()).hexdigest()[:16]
    try:
        Path(cache).mkdir(parents=True, exist_ok=True)
        with (Path(cache) / f".{name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not is_store(Path(cache) / name):
                with new_directory(Path(cache) / name) as directory:
                    copy_tree(path, directory)
                    _verify(directory, path)
    except OSError as error:
        raise UserError(f"config.data.cache={cache}: {path} cannot be copied: {error.strerror or error}") from None
    return Path(cache) / name


def _verify(copy: Path, path: Path) -> None:
    """Compares the checksums of a copy; an error names the store that was copied."""
    try:
        verify_store(copy)
    except UserError as error:
        raise UserError(str(error).replace(str(copy), str(path))) from None
