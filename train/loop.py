"""The training loop, shared by pre-training and fine-tuning.

Its order: restore; then for each step: step, report, evaluate, save, preempt, stop.
"""

import contextlib
import dataclasses
import time
from collections.abc import Generator
from pathlib import Path

import orbax.checkpoint as ocp
from jax.sharding import Mesh

from data.loader import Batch, BatchFunction, train_batches
from data.storage.paths import is_remote
from model.dtypes import dtype_of_products
from model.transformer import Params
from train.checkpoint.local_tier import open_local_manager
from train.checkpoint.manager import BEST_DIR, open_manager, wait
from train.checkpoint.restore import restore_newest, restore_params
from train.checkpoint.save import save, save_best
from train.console import say, warn
from train.distributed import preemption, watchdog
from train.distributed.mesh import check_host_memory
from train.distributed.placement import local_places, put_batch
from train.distributed.processes import is_process_zero, run_on_process_zero
from train.early_stopping import Selection, resume_selection
from train.job import Job, first_state
from train.profiling.window import Target, profiled
from train.reporter import LENGTH_PHASE, Diverged, StepReporter, open_reporter
from train.run import goodput
from train.run.goodput import Goodput
from train.run.history import dtype_of_step, read_accounts, read_records
from train.run.rollback import roll_back, skipped_batches
from train.settings import Settings
from train.step import Program, TrainState, make_program


@dataclasses.dataclass(frozen=True)
class Session:
    """What stays the same from the start of a run to its end.

    Attributes:
        job: what is trained, from the stage.
        settings: the config.
        mesh: the devices.
        workdir: directory of the run.
        program: the compiled functions.
        checkpoints: manager of `checkpoints/`.
        best: manager of `best/`, or None without `config.checkpoint.best`.
        local: manager of the local checkpoints, or None without `config.checkpoint.local_path`.
    """

    job: Job
    settings: Settings
    mesh: Mesh
    workdir: Path
    program: Program
    checkpoints: ocp.CheckpointManager
    best: ocp.CheckpointManager | None
    local: ocp.CheckpointManager | None

    def say(self, text: str) -> None:
        """Prints a line of progress."""
        say(f"{self.job.title}: {text}")


def fit(job: Job, settings: Settings, mesh: Mesh, workdir: Path) -> Params:
    """Trains to `settings.num_steps` and returns the parameters; resumes from the newest sound checkpoint in `workdir`.

    `config.evaluation.patience` may stop it earlier; with `config.checkpoint.best` the parameters are those of the best
    evaluation. After too many consecutive skipped steps, `config.faults.on_divergence` decides whether it stops or
    rolls back to the newest checkpoint and passes over the data since.

    Raises:
        UserError: a checkpoint does not match the model, too many steps were skipped, or there is no host memory to
            offload to.
        Preempted: SIGTERM was received; the newest step is saved.
    """
    began = time.perf_counter()
    check_host_memory(settings, mesh)
    program = make_program(job.objective, settings, mesh, job.earlier_lengths)
    options = settings.checkpoint
    with contextlib.ExitStack() as stack:
        # Entered first so that it also covers shutdown, which can hang.
        stack.enter_context(watchdog.watching(settings.faults.hang_seconds, workdir))
        checkpoints = stack.enter_context(open_manager(workdir, options.keep, keep_period=options.keep_period))
        best = stack.enter_context(open_manager(workdir, 1, BEST_DIR)) if options.best else None
        local = stack.enter_context(open_local_manager(options.local_path, workdir, options.keep))
        session = Session(job, settings, mesh, workdir, program, checkpoints, best, local)
        failed_step = None
        while True:
            with goodput.measure(began) as times:
                state = _restore(session, failed_step)
                try:
                    state = _train(session, state, times)
                    break
                except Diverged as error:
                    if settings.faults.on_divergence == "stop":
                        raise
                    failed_step = error.step
            began = time.perf_counter()
            # The exception, whose traceback keeps the state alive, is freed by now: there is memory to restore.
            wait(checkpoints)
            if local is not None:
                wait(local)
    if options.best:
        trained = restore_params(workdir, program.state.params, mesh, job.objective.trained, BEST_DIR)
        state = state._replace(params=trained, average={})
    return state.final_params


def _restore(session: Session, failed_step: int | None) -> TrainState:
    """Returns the state to start from; after a divergence at `failed_step`, records which batches to pass over."""
    restored = restore_newest(session.checkpoints, session.program.state, session.mesh, session.local)
    state = first_state(session.job, session.settings, session.program, restored)
    if failed_step is not None:
        entry = roll_back(session.workdir, int(state.step), failed_step)
        session.say(f"rolled back to step {entry['step']}; batches {entry['first']} to {entry['last']} are passed over")
    return state


def _train(session: Session, state: TrainState, times: Goodput) -> TrainState:
    """Returns the last state."""
    settings, program, workdir = session.settings, session.program, session.workdir
    start, num_steps = int(state.step), settings.num_steps
    selection = _resume_selection(session, start)
    if start:
        session.say(f"resumed at step {start} of {num_steps}")
    batches = BatchFunction(session.job.rows, settings.batch_size, settings.seed, None, skipped_batches(workdir))
    if start >= num_steps or selection.stops:
        _report_end(session, state, batches, times, selection)
        return state
    if is_process_zero():
        accounts = read_accounts(workdir)
        times.carry(goodput.spent_before(accounts, start))
        _warn_of_dtype(settings, dtype_of_step(accounts, start))
    with (
        open_reporter(session.job, settings, workdir, batches, start, times) as reporter,
        preemption.notices() as preempted_at,
        contextlib.closing(_batches(session, batches, start, times, reporter)) as placed,
    ):
        schedule = CheckpointSchedule(settings)
        _report_lengths(session, reporter)
        reporter.write_wall_time(start)
        times.enter("step")
        for step, batch in enumerate(placed, start + 1):
            # Step
            state, metrics = program.step(state, batch)
            last = step == num_steps

            # Report: reads the metrics of the step before, so that one is done.
            reporter.step_done(step, metrics)
            watchdog.tick(f"step {step - 1}")

            # Evaluate
            if last or step % settings.evaluation.every == 0:
                _evaluate(session, state, step, reporter, selection)

            # Save
            preempted = preempted_at(step)
            ends = last or selection.stops or preempted
            if schedule.due(step) or ends:
                _save(session, state, reporter, ends)
                reporter.write_wall_time(step)
            elif session.local is not None and step % settings.checkpoint.local_every == 0:
                _save_locally(session.local, session, state, reporter)

            # Preempt
            if preempted and not last:
                raise preemption.Preempted(
                    f"{session.job.title}: received SIGTERM: step {step} of {num_steps} is saved; "
                    "run the same command again to resume"
                )

            # Stop
            if selection.stops and not last:
                session.say(f"step {step}: stopped early: {settings.evaluation.metric} did not improve")
                break
    _say_end(session, times)
    return state


def _report_end(
    session: Session, state: TrainState, batches: BatchFunction, times: Goodput, selection: Selection
) -> None:
    """Reports the end of a run that has nothing left to train, if it was made shorter than it had been evaluated."""
    step = int(state.step)
    if _evaluated(session.workdir)[-1:] == [step]:
        return
    with open_reporter(session.job, session.settings, session.workdir, batches, step, times) as reporter:
        _report_lengths(session, reporter)
        # The lines of later steps are gone by now.
        if step not in _evaluated(session.workdir):
            _evaluate(session, state, step, reporter, selection)


def _evaluated(workdir: Path) -> list[int]:
    """Returns the steps after which the run was evaluated, in order: process 0's on every process."""
    return run_on_process_zero(lambda: [r["step"] for r in read_records(workdir, "eval") if r["phase"] == "eval"])


def _resume_selection(session: Session, start: int) -> Selection:
    """Returns the selection after `start` steps; deletes best parameters of later steps, which will be repeated.

    What may change on resume can make these steps different. If no best parameters are left, the next evaluation is the
    best so far.
    """
    settings, best = session.settings.evaluation, session.best
    if best is not None:
        for step in best.all_steps():
            if step > start:
                best.delete(step)
        if best.latest_step() is None:
            return Selection(settings)
    return resume_selection(settings, session.workdir, start)


def _warn_of_dtype(settings: Settings, before: str | None) -> None:
    """Warns if the run goes on in another dtype than the one before: "auto" depends on the machine and its devices."""
    now = str(dtype_of_products(settings.model["compute_dtype"]))
    if before not in (None, now):
        warn(
            f"the steps so far were computed in {before}, the next ones in {now}; config.model.compute_dtype={before} "
            "keeps the dtype"
        )


def _report_lengths(session: Session, reporter: StepReporter) -> None:
    """Reports the changes of the run's length that metrics.jsonl does not show yet."""
    earlier = session.job.earlier_lengths
    if not earlier:
        return
    lengths = [*(length for _, length in earlier), session.settings.num_steps]
    shown = sum(record["phase"] == LENGTH_PHASE for record in read_records(session.workdir, LENGTH_PHASE))
    for (step, before), after in list(zip(earlier, lengths[1:], strict=True))[shown:]:
        reporter.write_length(step, before, after)


def _batches(
    session: Session, batches: BatchFunction, start: int, times: Goodput, reporter: StepReporter
) -> Generator[Batch]:
    """Yields the batches from step `start` on, placed on the mesh; waiting for them counts as "data".

    During the steps of `config.logging.profile_steps` the profiler runs.
    """
    settings, mesh = session.settings, session.mesh
    local = dataclasses.replace(batches, row_indices=local_places(mesh, settings.batch_size))
    loaded = train_batches(local, start, settings.num_steps, settings.data.num_workers, settings.data.prefetch)
    placed = times.timed("data", (put_batch(batch, mesh) for batch in loaded))
    return profiled(placed, Target(session.job, settings, session.program, session.workdir), start, reporter)


def _evaluate(session: Session, state: TrainState, step: int, reporter: StepReporter, selection: Selection) -> None:
    """Reports the metrics on held-out rows and saves the best parameters so far."""
    with reporter.outside_steps("evaluation"):
        metrics = session.job.evaluate(state.final_params)
        watchdog.tick(f"the evaluation of step {step}")
        reporter.evaluated(step, metrics, session.job.better)
        if selection.take(metrics, session.job.better) and session.best is not None:
            save_best(session.best, state, session.mesh)


def _save(session: Session, state: TrainState, reporter: StepReporter, ends: bool) -> None:
    """Starts saving a state; waits for the save if the run ends here.

    Not in a series of skipped steps: a roll-back must return to the state before them.
    """
    with reporter.outside_steps("checkpoint"):
        if ends or not reporter.consecutive_skips:
            _commit(session, reporter)
            save(session.checkpoints, state, session.mesh)
        if ends:
            with reporter.goodput.part("upload" if is_remote(session.workdir) else "checkpoint"):
                wait(session.checkpoints)


def _save_locally(local: ocp.CheckpointManager, session: Session, state: TrainState, reporter: StepReporter) -> None:
    """Starts saving a state to the local directory; not in a series of skipped steps (see `_save`)."""
    with reporter.outside_steps("checkpoint"):
        if not reporter.consecutive_skips:
            _commit(session, reporter)
            save(local, state, session.mesh)


def _commit(session: Session, reporter: StepReporter) -> None:
    """Waits for what must be saved before a checkpoint.

    A run that resumes there expects the best evaluation up to it in `best/` and, in a bucket, every record.
    """
    with reporter.goodput.part("upload" if is_remote(session.workdir) else "checkpoint"):
        if session.best is not None:
            wait(session.best)
        reporter.write.publish()


class CheckpointSchedule:
    """The steps to save after, by `config.checkpoint`; the same on every host. Call `due` after every step."""

    def __init__(self, settings: Settings) -> None:
        self.every, self.seconds = settings.checkpoint.every, 60 * settings.checkpoint.minutes
        self.check_every = settings.logging.every
        self.last = time.monotonic()

    def due(self, step: int) -> bool:
        """Returns whether to save after `step` steps."""
        by_step = bool(self.every) and step % self.every == 0
        # The hosts' clocks differ, so process 0 decides.
        by_time = bool(self.seconds) and step % self.check_every == 0 and run_on_process_zero(self._time_is_up)
        if by_step or by_time:
            self.last = time.monotonic()
        return by_step or by_time

    def _time_is_up(self) -> bool:
        return time.monotonic() - self.last >= self.seconds


def _say_end(session: Session, times: Goodput) -> None:
    """Prints where the time went and what was skipped."""
    skipped = sum(record["phase"] == "skipped" for record in read_records(session.workdir, "skipped"))
    rolled_back = len(skipped_batches(session.workdir))
    counts = f"{skipped} steps skipped, {rolled_back} roll-backs; " if skipped or rolled_back else ""
    session.say(f"{counts}{goodput.describe(times.seconds())}")
