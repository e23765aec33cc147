"""The one training loop: pre-training and fine-tuning are this function with other rows and another head."""

import contextlib
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
from train.selection import resume_selection
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
        graft: names of groups of parameters -> these groups, read from another run; None: all are random.
        grafted: the groups that it reads.
        flops_per_step: model FLOPs of one step, for MFU.
    """

    title: str
    objective: Objective
    rows: Rows
    evaluate: Evaluate
    graft: Callable[[tuple[str, ...]], Params] | None
    grafted: tuple[str, ...]
    flops_per_step: float


def fit(job: Job, settings: Settings, mesh: Mesh, workdir: Path) -> Params:
    """Trains to `settings.num_steps` and returns the parameters; goes on from the newest sound checkpoint in `workdir`.

    With `config.evaluation.patience` it may end before; with `config.checkpoint.best` the parameters are those of the
    best evaluation.

    Raises:
        UserError: a checkpoint that does not match, a loss that is not finite, or no host memory to offload to.
    """
    check_host_memory(settings, mesh)
    program = make_program(job.objective, settings, mesh)
    with contextlib.ExitStack() as stack:
        manager = stack.enter_context(checkpoint.open_manager(workdir, settings.checkpoint.keep))
        best = (
            stack.enter_context(checkpoint.open_manager(workdir, 1, checkpoint.BEST))
            if settings.checkpoint.best
            else None
        )
        state = _first_state(job, settings, program, mesh, manager)
        state = _train(job, settings, program, mesh, workdir, state, manager, best)
    if settings.checkpoint.best:
        trained = checkpoint.restore_params(workdir, program.state.params, mesh, job.objective.trained, checkpoint.BEST)
        state = state._replace(params=trained)
    return state.all_params


def _train(
    job: Job,
    settings: Settings,
    program: Program,
    mesh: Mesh,
    workdir: Path,
    state: TrainState,
    manager: Any,  # noqa: ANN401 - Orbax's managers
    best: Any,  # noqa: ANN401
) -> TrainState:
    """Returns the last state."""
    start, every = int(state.step), settings.checkpoint.every
    selection = resume_selection(settings.evaluation, workdir, start)
    if start:
        console.print(f"{job.title}: resumed at step {start} of {settings.num_steps}", highlight=False)
    if start >= settings.num_steps or selection.stops:
        return state
    function = BatchFunction(job.rows, settings.batch_size, settings.seed, local_places(mesh, settings.batch_size))
    batches = train_batches(function, start, settings.num_steps, settings.data.workers, settings.data.read_ahead)
    with (
        open_writer(workdir, start, settings.logging.tensorboard, is_first()) as write,
        progress(job.title, settings.num_steps) as bar,
    ):
        watch = Watch(job.title, settings, job.flops_per_step, write, bar, start)
        for step, batch in enumerate(batches, start + 1):
            state, metrics = program.step(state, put_batch(batch, mesh))
            watch.step_done(step, metrics)
            last = step == settings.num_steps
            if last or step % settings.evaluation.every == 0:
                with watch.outside_steps():
                    figures = job.evaluate(state.all_params)
                    watch.evaluated(step, figures)
                    if selection.take(figures) and best is not None:
                        checkpoint.save_best(best, state, mesh)
            if last or selection.stops or step % every == 0:
                with watch.outside_steps():
                    checkpoint.save(manager, state, mesh)
            if selection.stops and not last:
                name = settings.evaluation.metric
                console.print(f"{job.title}: step {step}: {name} did not improve, the run ends", highlight=False)
                break
    return state


def _first_state(
    job: Job,
    settings: Settings,
    program: Program,
    mesh: Mesh,
    manager: Any,  # noqa: ANN401 - Orbax's manager
) -> TrainState:
    """Own checkpoint > another run's parameters > random."""
    restored = checkpoint.restore_newest(manager, program.state, mesh)
    frozen = tuple(program.state.frozen)
    if restored is not None and not frozen:
        return restored
    if restored is not None and job.graft is not None:
        return restored._replace(frozen=_as_frozen(job, program, job.graft(frozen)))
    state = program.initialise(jax.random.key_data(jax.random.key(settings.seed)))
    if restored is not None:
        return restored._replace(frozen=state.frozen)
    if job.graft is None:
        return state
    grafted = job.graft(job.grafted)
    new = [
        f"{group} ({len(jax.tree.leaves(tree))} leaves)" for group, tree in state.params.items() if group not in grafted
    ]
    trained, kept = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (state.params, state.frozen))
    console.print(
        f"{job.title}: loaded {len(jax.tree.leaves(grafted))} leaves; new: {', '.join(new) or 'none'}; "
        f"{trained:,} of {trained + kept:,} parameters train ({trained / (trained + kept):.2%})",
        highlight=False,
    )
    params = state.params | {group: tree for group, tree in grafted.items() if group in state.params}
    return state._replace(params=params, frozen=state.frozen | _as_frozen(job, program, grafted))


def _as_frozen(job: Job, program: Program, groups: Params) -> Params:
    """Returns the groups that do not train, as the step reads them."""
    frozen = program.state.frozen
    shardings = jax.tree.map(lambda leaf: leaf.sharding, frozen)

    def cast(groups: Params) -> Params:
        return {group: tree for group, tree in job.objective.cast(groups).items() if group in frozen}

    return jax.jit(cast, out_shardings={g: shardings[g] for g in groups if g in frozen})(groups) if frozen else {}
