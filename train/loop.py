"""The one training loop: pre-training and fine-tuning are this function with other rows and another head."""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from data.loader import BatchFunction, Rows, train_batches
from model.heads import Objective
from model.transformer import Params
from train import checkpoint, goodput, preemption
from train.distributed import is_first
from train.mesh import check_host_memory, local_places, put_batch
from train.metrics import console, open_writer, progress, read_records
from train.selection import resume_selection
from train.settings import Settings
from train.skipped import roll_back, skipped_batches
from train.step import Program, TrainState, make_program
from train.watch import Diverged, Watch

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
    best evaluation. After too many skipped steps in a row it goes back to the newest checkpoint where
    `config.faults.then` says so, and passes over the data since.

    Raises:
        UserError: a checkpoint that does not match, too many skipped steps, or no host memory to offload to.
        Preempted: SIGTERM came; the newest step is saved.
    """
    began = time.perf_counter()
    check_host_memory(settings, mesh)
    program = make_program(job.objective, settings, mesh)
    with contextlib.ExitStack() as stack:
        manager = stack.enter_context(checkpoint.open_manager(workdir, settings.checkpoint.keep))
        best = (
            stack.enter_context(checkpoint.open_manager(workdir, 1, checkpoint.BEST))
            if settings.checkpoint.best
            else None
        )
        failed_step = None
        while True:
            with goodput.measure(began) as spent:
                state = _first_state(job, settings, program, mesh, manager)
                if failed_step is not None:
                    _say_back(job.title, roll_back(workdir, int(state.step), failed_step))
                try:
                    state = _train(job, settings, program, mesh, workdir, state, manager, best, spent)
                    break
                except Diverged as error:
                    if settings.faults.then == "stop":
                        raise
                    failed_step = error.step
            began = time.perf_counter()
            # Here the error is gone, whose traceback held the state.
            checkpoint.wait(manager)
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
    spent: goodput.Goodput,
) -> TrainState:
    """Returns the last state."""
    start, every = int(state.step), settings.checkpoint.every
    selection = resume_selection(settings.evaluation, workdir, start)
    if start:
        console.print(f"{job.title}: resumed at step {start} of {settings.num_steps}", highlight=False)
    if start >= settings.num_steps or selection.stops:
        return state
    function = BatchFunction(job.rows, settings.batch_size, settings.seed, None, skipped_batches(workdir))
    own = dataclasses.replace(function, places=local_places(mesh, settings.batch_size))
    batches = train_batches(own, start, settings.num_steps, settings.data.workers, settings.data.read_ahead)
    placed = spent.timed("data", (put_batch(batch, mesh) for batch in batches))
    if is_first():
        spent.carry(goodput.spent_before(read_records(workdir), start))
    with (
        open_writer(workdir, start, settings.logging.tensorboard, is_first()) as write,
        progress(job.title, settings.num_steps) as bar,
        preemption.notices() as notified,
    ):
        watch = Watch(job.title, settings, job.flops_per_step, write, bar, start, function, spent)
        watch.account(start)
        spent.enter("step")
        for step, batch in enumerate(placed, start + 1):
            state, metrics = program.step(state, batch)
            watch.step_done(step, metrics)
            last = step == settings.num_steps
            if last or step % settings.evaluation.every == 0:
                with watch.outside_steps("evaluation"):
                    figures = job.evaluate(state.all_params)
                    watch.evaluated(step, figures)
                    if selection.take(figures) and best is not None:
                        checkpoint.save_best(best, state, mesh)
            preempted = notified(step)
            ends = last or selection.stops or preempted
            if ends or step % every == 0:
                _save(watch, manager, state, mesh, ends)
                watch.account(step)
            if preempted and not last:
                raise preemption.Preempted(
                    f"{job.title}: told to end (SIGTERM): step {step} of {settings.num_steps} is saved; "
                    "run the same command again to go on"
                )
            if selection.stops and not last:
                name = settings.evaluation.metric
                console.print(f"{job.title}: step {step}: {name} did not improve, the run ends", highlight=False)
                break
    _say_end(job.title, workdir, spent)
    return state


def _save(watch: Watch, manager: Any, state: TrainState, mesh: Mesh, ends: bool) -> None:  # noqa: ANN401 - Orbax's
    """Starts saving a state, and waits for the last one; none amid skipped steps, where a roll-back shall not end."""
    with watch.outside_steps("checkpoint"):
        if ends or not watch.in_a_row:
            checkpoint.save(manager, state, mesh)
        if ends:
            checkpoint.wait(manager)


def _say_back(title: str, entry: dict[str, int]) -> None:
    console.print(
        f"{title}: back to step {entry['step']}; batches {entry['first']} to {entry['last']} are passed over",
        highlight=False,
    )


def _say_end(title: str, workdir: Path, spent: goodput.Goodput) -> None:
    """Says where the time went and what was skipped."""
    skipped = sum(record["phase"] == "skipped" for record in read_records(workdir))
    backs = len(skipped_batches(workdir))
    counted = f"{skipped} steps skipped, {backs} times rolled back; " if skipped or backs else ""
    console.print(f"{title}: {counted}{goodput.describe(spent.seconds())}", highlight=False)


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
