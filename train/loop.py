"""The one training loop: pre-training and fine-tuning are this function with other rows and another head."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from data.loader import BatchFunction, Rows, train_batches
from model.heads import Objective
from model.transformer import Params
from train import checkpoint
from train.distributed import is_first
from train.mesh import check_host_memory, local_places, put_batch
from train.metrics import console, open_writer, progress
from train.settings import Settings
from train.step import Program, TrainState, make_program
from train.watch import Watch

Evaluate = Callable[[Params], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Job:
    """What a stage hands to the loop.

    Attributes:
        title: beside the progress bar.
        objective: the model with its head.
        rows: what to train on.
        evaluate: parameters -> figures with a "loss", on held-out rows.
        graft: abstract parameters (with shardings) -> some groups of them read from another run; None: all random.
        flops_per_step: model FLOPs of one step, for MFU.
    """

    title: str
    objective: Objective
    rows: Rows
    evaluate: Evaluate
    graft: Callable[[Params], Params] | None
    flops_per_step: float


def fit(job: Job, settings: Settings, mesh: Mesh, workdir: Path) -> Params:
    """Trains to `settings.num_steps` and returns the parameters; goes on from the newest sound checkpoint in `workdir`.

    Raises:
        UserError: a checkpoint that does not match, a loss that is not finite, or no host memory to offload to.
    """
    check_host_memory(settings, mesh)
    program = make_program(job.objective, settings, mesh)
    with checkpoint.open_manager(workdir, settings.checkpoint.keep) as manager:
        state = _first_state(job, settings, program, mesh, manager)
        start = int(state.step)
        if start:
            console.print(f"{job.title}: resumed at step {start} of {settings.num_steps}", highlight=False)
        if start >= settings.num_steps:
            return state.params
        places = local_places(mesh, settings.batch_size)
        function = BatchFunction(job.rows, settings.batch_size, settings.seed, places)
        batches = train_batches(function, start, settings.num_steps, settings.data.workers, settings.data.read_ahead)
        with (
            open_writer(workdir, start, settings.logging.tensorboard, is_first()) as write,
            progress(job.title, settings.num_steps) as bar,
        ):
            watch = Watch(job.title, settings, job.flops_per_step, write, bar, start)
            for index, batch in enumerate(batches, start):
                state, metrics = program.step(state, put_batch(batch, mesh))
                watch.step_done(index + 1, metrics)
                last = index + 1 == settings.num_steps
                if last or (index + 1) % settings.evaluation.every == 0:
                    with watch.outside_steps():
                        watch.evaluated(index + 1, job.evaluate(state.params))
                if last or (index + 1) % settings.checkpoint.every == 0:
                    with watch.outside_steps():
                        checkpoint.save(manager, state, mesh)
    return state.params


def _first_state(
    job: Job,
    settings: Settings,
    program: Program,
    mesh: Mesh,
    manager: Any,  # noqa: ANN401 - Orbax's manager
) -> TrainState:
    """Own checkpoint > another run's parameters > random."""
    restored = checkpoint.restore_newest(manager, program.state, mesh)
    if restored is not None:
        return restored
    key = jax.random.key_data(jax.random.key(settings.seed))
    state = program.initialise(key)
    if job.graft is None:
        return state
    grafted = job.graft(program.state.params)
    new = [f"head ({len(jax.tree.leaves(state.params['head']))} leaves)"] if "head" not in grafted else []
    console.print(
        f"{job.title}: loaded {len(jax.tree.leaves(grafted))} leaves; new: {', '.join(new) or 'none'}",
        highlight=False,
    )
    return state._replace(params=state.params | grafted)
