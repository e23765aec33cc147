"""Adds what a run trained into its foundation: an adapter or a head alone becomes a run that needs no other.

rootstock merge --checkpoint=runs/lora --output=runs/merged
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags

from configs.errors import UserError
from train.checkpoint.manager import open_manager
from train.checkpoint.save import save
from train.console import say
from train.distributed.mesh import single_device_mesh
from train.run.lock import claim
from train.run.record import open_run
from train.run.record import start as start_run
from train.step import TrainState
from train.trees import boxed_params

REQUIRED = ("checkpoint", "output")


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    flags.DEFINE_string("checkpoint", None, "Run whose foundation did not train as a whole.", flag_values=values)
    flags.DEFINE_string("output", None, "Directory of the merged run; new.", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command."""
    merge(Path(values.checkpoint), Path(values.output))


def merge(directory: Path, output: Path) -> None:
    """Writes a run with the same predictions whose checkpoint holds every parameter.

    Raises:
        UserError: not a run of which a part was frozen, its foundation is gone, or `output` is not free.
    """
    adapter = open_run(directory)
    record = adapter.record
    if record.stage == "pretrain" or adapter.adaptation().method == "full":
        raise UserError(f"--checkpoint={directory} trained all of its parameters; there is nothing to merge")
    if output.exists() and any(output.iterdir()):
        raise UserError(f"--output={output} exists and is not empty; legal: a new directory")
    mesh = single_device_mesh()
    groups = tuple(boxed_params(adapter.objective(adapted=False)))
    config = record.config | {"adapt": record.config["adapt"] | {"method": "full"}}
    # The parameters are the best ones already, where the run kept those.
    config |= {"checkpoint": config["checkpoint"] | {"best": False}}
    with claim(output), jax.set_mesh(mesh):
        params = adapter.load_merged(mesh, groups)
        start_run(output, dataclasses.replace(record, config=config), adapter.tokenizer())
        step = jnp.asarray(record.config["num_steps"], jnp.int32)
        with open_manager(output, keep=1) as manager:
            save(manager, TrainState(step, params, None, {}), mesh)
    say(f"merge: {output} holds the whole model")
