"""Writes a run with the same predictions as a run with an adapter, whose checkpoint contains every parameter."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp

from configs.errors import UserError
from data.storage.new_directory import check_new, new_directory
from train.checkpoint.manager import open_manager
from train.checkpoint.save import save
from train.console import say
from train.distributed.mesh import single_device_mesh
from train.run.calibration import read_calibration, read_ensemble, write_calibration
from train.run.record import open_run
from train.run.record import start as start_run
from train.step import TrainState
from train.trees import boxed_params


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
    # `load_merged` already returns the best parameters if the run kept them, and their average if it has one.
    config |= {"checkpoint": config["checkpoint"] | {"best": False}}
    config |= {"optimizer": config["optimizer"] | {"ema": 0.0}}
    with new_directory(output, in_place=True) as partial, jax.set_mesh(mesh):
        params = adapter.load_merged(mesh, groups)
        start_run(partial, dataclasses.replace(record, config=config), adapter.tokenizer())
        step = jnp.asarray(record.config["num_steps"], jnp.int32)
        with open_manager(partial, keep=1) as manager:
            save(manager, TrainState(step, params, None, {}), mesh)
        if (calibration := read_calibration(adapter)) is not None:
            ensemble = read_ensemble(adapter, calibration)
            write_calibration(partial, dataclasses.replace(calibration, step=int(step)), ensemble)
    say(f"merge: {output} contains the whole model")
