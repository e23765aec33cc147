"""Programs that XLA compiled are kept for later commands, in JAX's persistent compilation cache."""

import hashlib
import os
import platform
from pathlib import Path

from absl import flags

from configs.errors import UserError
from data.storage.paths import is_url
from train.console import say, warn

FLAG = "compilation_cache"
_AUTO = "auto"
_LARGEST = 4 * 2**30  # bytes; what was used longest ago is deleted first
_LEAST_SECONDS = 0.1  # programs that compile faster are not kept


def define_flag(values: flags.FlagValues) -> None:
    """Adds `--compilation_cache` to `values`."""
    text = (
        "Folder in which compiled programs are kept for later commands; auto: the environment variable "
        "JAX_COMPILATION_CACHE_DIR, or a folder for this machine in the user's cache; empty: none."
    )
    flags.DEFINE_string(FLAG, _AUTO, text, flag_values=values)


def use(folder: str) -> None:
    """Makes JAX keep compiled programs in a folder ("auto", "": see the flag); says so when the folder is made.

    Raises:
        UserError: the folder is in a bucket, where the oldest programs could not be deleted.
    """
    import jax

    if is_url(folder):
        raise UserError(f"--{FLAG}={folder} is in a bucket; expected a folder on this machine")
    if folder == _AUTO and os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    if not folder:
        jax.config.update("jax_enable_compilation_cache", False)
        return
    path = Path(_default_folder() if folder == _AUTO else folder)
    try:
        if not path.is_dir():
            path.mkdir(parents=True)
            say(f"compiled programs are kept in {path} for later commands; --{FLAG}= keeps none")
    except OSError as error:
        warn(f"compiled programs are not kept: {error}; set --{FLAG} to a folder that can be written, or to nothing")
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_compilation_cache_max_size", _LARGEST)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)


def _default_folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "rootstock" / folder_name()


def folder_name() -> str:
    """Returns a name of its own for each type of processor: a folder can be shared or moved, a program cannot."""
    return f"xla-{hashlib.sha256(_processor().encode()).hexdigest()[:12]}"


def _processor() -> str:
    """Returns a text that differs between processors with different instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    # "Features" on Arm.
    described = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    return platform.machine() + "".join(sorted(described))
