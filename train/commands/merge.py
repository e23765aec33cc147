"""Merges an adapter or a fine-tuned head into its base model; the result is a run that needs no other.

rootstock merge --run=runs/lora --workdir=runs/merged
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags

from configs.errors import UserError
from data.storage.new_directory import check_new, new_directory
from data.storage.paths import at
from train.checkpoint.manager import open_manager
from train.checkpoint.save import save
from train.console import say
from train.distributed.mesh import single_device_mesh
from train.files import check_output_directory
from train.finetuning.confidence import read_calibration, write_calibration
from train.run.record import open_run
from train.run.record import start as start_run
from train.step import TrainState
from train.trees import boxed_params

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
    check_output_directory(at(values.workdir), "workdir")
    merge(at(values.run), at(values.workdir))


def merge(directory: Path, output: Path) -> None:
    """Writes a run with the same predictions whose checkpoint contains every parameter; it appears when complete.

    Raises:
        UserError: the run trained all parameters, its base model is missing, or `output` is not empty.
    """
    adapter = open_run(directory)
    record = adapter.record
    if record.stage == "pretrain" or adapter.adaptation().method == "full":
        raise UserError(f"--run={directory} trained all of its parameters; there is nothing to merge")
    check_new(output)
    mesh = single_device_mesh()
    groups = tuple(boxed_params(adapter.objective(adapted=False)))
    config = record.config | {"adapt": record.config["adapt"] | {"method": "full"}}
    # load_merged_params already returns the best parameters if the run kept them.
    config |= {"checkpoint": config["checkpoint"] | {"best": False}}
    with new_directory(output, in_place=True) as partial, jax.set_mesh(mesh):
        params = adapter.load_merged(mesh, groups)
        start_run(partial, dataclasses.replace(record, config=config), adapter.tokenizer())
        step = jnp.asarray(record.config["num_steps"], jnp.int32)
        with open_manager(partial, keep=1) as manager:
            save(manager, TrainState(step, params, None, {}), mesh)
            if (found := read_calibration(adapter)) is not None:
                write_calibration(partial, dataclasses.replace(found, step=int(step)))
    say(f"merge: {output} contains the whole model")
