"""The one training loop: pre-training and fine-tuning are this function with other rows and another head."""

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from data.loader import BatchFunction, train_batches
from model.transformer import Params
from train.checkpoint.manager import BEST_DIR, open_manager, wait
from train.checkpoint.restore import restore_newest, restore_params
from train.checkpoint.save import save, save_best
from train.console import progress, say
from train.distributed import preemption, watchdog
from train.distributed.mesh import check_host_memory
from train.distributed.placement import local_places, put_batch
from train.distributed.processes import is_process_zero, run_on_process_zero
from train.early_stopping import resume_selection
from train.job import Job, first_state
from train.reporter import Diverged, Watch
from train.run import goodput
from train.run.history import open_writer, read_records
from train.run.rollback import roll_back, skipped_batches
from train.settings import Settings
from train.step import Program, TrainState, make_program


def fit(job: Job, settings: Settings, mesh: Mesh, workdir: Path) -> Params:
    """Trains to `settings.num_steps` and returns the parameters; goes on from the newest sound checkpoint in `workdir`.

    With `config.evaluation.patience` it may end before; with `config.checkpoint.best` the parameters are those of the
    best evaluation. After too many skipped steps in a row it goes back to the newest checkpoint where
    `config.faults.on_divergence` says so, and passes over the data since.

    Raises:
        UserError: a checkpoint that does not match, too many skipped steps, or no host memory to offload to.
        Preempted: SIGTERM came; the newest step is saved.
    """
    began = time.perf_counter()
    check_host_memory(settings, mesh)
    program = make_program(job.objective, settings, mesh)
    with contextlib.ExitStack() as stack:
        # First in, last out: what ends a run may hang too.
        stack.enter_context(watchdog.watching(settings.faults.hang_seconds, workdir))
        manager = stack.enter_context(
            open_manager(workdir, settings.checkpoint.keep, keep_period=settings.checkpoint.keep_period)
        )
        best = stack.enter_context(open_manager(workdir, 1, BEST_DIR)) if settings.checkpoint.best else None
        failed_step = None
        while True:
            with goodput.measure(began) as spent:
                restored = restore_newest(manager, program.state, mesh)
                state = first_state(job, settings, program, restored)
                if failed_step is not None:
                    _say_back(job.title, roll_back(workdir, int(state.step), failed_step))
                try:
                    state = _train(job, settings, program, mesh, workdir, state, manager, best, spent)
                    break
                except Diverged as error:
                    if settings.faults.on_divergence == "stop":
                        raise
                    failed_step = error.step
            began = time.perf_counter()
            # Here the error is gone, whose traceback held the state.
            wait(manager)
    if settings.checkpoint.best:
        trained = restore_params(workdir, program.state.params, mesh, job.objective.trained, BEST_DIR)
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
    start = int(state.step)
    selection = resume_selection(settings.evaluation, workdir, start)
    if start:
        say(f"{job.title}: resumed at step {start} of {settings.num_steps}")
    if start >= settings.num_steps or selection.stops:
        return state
    function = BatchFunction(job.rows, settings.batch_size, settings.seed, None, skipped_batches(workdir))
    own = dataclasses.replace(function, row_indices=local_places(mesh, settings.batch_size))
    batches = train_batches(own, start, settings.num_steps, settings.data.num_workers, settings.data.prefetch)
    placed = spent.timed("data", (put_batch(batch, mesh) for batch in batches))
    if is_process_zero():
        spent.carry(goodput.spent_before(read_records(workdir), start))
    with (
        open_writer(workdir, start, settings.logging.tensorboard, is_process_zero()) as write,
        progress(job.title, settings.num_steps) as bar,
        preemption.notices() as notified,
    ):
        watch = Watch(job.title, settings, job.flops_per_step, write, bar, start, function, spent)
        due = _Due(settings)
        watch.account(start)
        spent.enter("step")
        for step, batch in enumerate(placed, start + 1):
            state, metrics = program.step(state, batch)
            watch.step_done(step, metrics)
            # Its metrics were read.
            watchdog.tick(f"step {step - 1}")
            last = step == settings.num_steps
            if last or step % settings.evaluation.every == 0:
                with watch.outside_steps("evaluation"):
                    figures = job.evaluate(state.all_params)
                    watchdog.tick(f"the evaluation of step {step}")
                    watch.evaluated(step, figures)
                    if selection.take(figures) and best is not None:
                        save_best(best, state, mesh)
            preempted = notified(step)
            ends = last or selection.stops or preempted
            if due(step) or ends:
                _save(watch, manager, state, mesh, ends)
                watch.account(step)
            if preempted and not last:
                raise preemption.Preempted(
                    f"{job.title}: told to end (SIGTERM): step {step} of {settings.num_steps} is saved; "
                    "run the same command again to go on"
                )
            if selection.stops and not last:
                name = settings.evaluation.metric
                say(f"{job.title}: step {step}: {name} did not improve, the run ends")
                break
    _say_end(job.title, workdir, spent)
    return state


class _Due:
    """Whether a step is one to save, by `config.checkpoint`; asked of each step in turn, the same on every host."""

    def __init__(self, settings: Settings) -> None:
        self.every, self.seconds = settings.checkpoint.every, 60 * settings.checkpoint.minutes
        self.looks = settings.logging.every
        self.last = time.monotonic()

    def __call__(self, step: int) -> bool:
        by_step = bool(self.every) and step % self.every == 0
        # Clocks differ: process 0's counts.
        by_time = bool(self.seconds) and step % self.looks == 0 and run_on_process_zero(self._waited)
        if by_step or by_time:
            self.last = time.monotonic()
        return by_step or by_time

    def _waited(self) -> bool:
        return time.monotonic() - self.last >= self.seconds


def _save(watch: Watch, manager: Any, state: TrainState, mesh: Mesh, ends: bool) -> None:  # noqa: ANN401 - Orbax's
    """Starts saving a state, and waits for the last one; none amid skipped steps, where a roll-back shall not end."""
    with watch.outside_steps("checkpoint"):
        if ends or not watch.consecutive_skips:
            save(manager, state, mesh)
        if ends:
            wait(manager)


def _say_back(title: str, entry: dict[str, int]) -> None:
    say(f"{title}: back to step {entry['step']}; batches {entry['first']} to {entry['last']} are passed over")


def _say_end(title: str, workdir: Path, spent: goodput.Goodput) -> None:
    """Says where the time went and what was skipped."""
    skipped = sum(record["phase"] == "skipped" for record in read_records(workdir))
    backs = len(skipped_batches(workdir))
    counted = f"{skipped} steps skipped, {backs} times rolled back; " if skipped or backs else ""
    say(f"{title}: {counted}{goodput.describe(spent.seconds())}")
