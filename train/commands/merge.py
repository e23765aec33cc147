"""Merges an adapter or a fine-tuned head into its base model; the result is a run that needs no other.

rootstock merge --run=runs/lora --workdir=runs/merged
"""

from absl import flags

from data.storage.paths import at
from train.files import check_output_directory

REQUIRED = ("run", "workdir")
RENAMED_FLAGS = {"checkpoint": "run", "output": "workdir"}


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    flags.DEFINE_string(
        "run", None, "Run with an adapter, or one that trained only a part of the model.", flag_values=values
    )
    flags.DEFINE_string("workdir", None, "Directory of the merged run; must be new.", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command."""
    from train.run.merging import merge

    check_output_directory(at(values.workdir), "workdir")
    merge(at(values.run), at(values.workdir))
