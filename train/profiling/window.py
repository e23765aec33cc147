"""Profiles some steps of a run (`config.logging.profile_steps`) from inside the training loop."""

import contextlib
import dataclasses
import itertools
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import jax
import jaxlib

from configs.errors import UserError, one_line
from data.loader import Batch
from data.storage.files import copy_file, delete_tree
from train.console import say, warn
from train.distributed.processes import is_process_zero
from train.hardware import attached_family
from train.job import Job
from train.profiling.files import Window, perfetto_file, trace_file, window_directory, write_window
from train.reporter import StepReporter
from train.settings import Settings
from train.step import Program

# XProf groups operations by the annotations with this name.
_STEP_NAME = "train"


@dataclasses.dataclass(frozen=True)
class Target:
    """What is profiled, and where the profile goes.

    Attributes:
        job: what is trained.
        settings: the config.
        program: the compiled functions.
        workdir: directory of the run.
    """

    job: Job
    settings: Settings
    program: Program
    workdir: Path


def profiled(batches: Iterator[Batch], target: Target, start: int, reporter: StepReporter) -> Generator[Batch]:
    """Yields the batches of the steps after `start`; the profiler runs during those of the window.

    The devices have done all earlier steps when the profiler starts, and all steps of the window when it stops.
    Starting and stopping it count neither as steps nor in the throughput. Close the iterator, so that a run that ends
    inside the window writes its profile.

    Raises:
        UserError: another profiler runs in this process.
    """
    first, last = _first_and_last(target, start)
    with contextlib.ExitStack() as profiler:
        for step in itertools.count(start + 1):
            if step == first <= last:
                with reporter.outside_steps("profile"):
                    done = profiler.enter_context(_profiler(target, first, last))
            batch = next(batches, None)
            if batch is None:
                return
            if first <= step <= last:
                done.append(step)
            with jax.profiler.StepTraceAnnotation(_STEP_NAME, step_num=step):
                yield batch
            if step == last:
                with reporter.outside_steps("profile"):
                    profiler.close()


def _first_and_last(target: Target, start: int) -> tuple[int, int]:
    """Returns the steps to profile of those after `start`; (0, -1): none."""
    if not target.settings.logging.profile_steps:
        return 0, -1
    first, count = target.settings.logging.profile_steps
    last = min(first + count - 1, target.settings.num_steps)
    if last <= start:
        say(f"{target.job.title}: steps {first} to {last} are done, so none of them is profiled")
        return 0, -1
    return max(first, start + 1), last


@contextlib.contextmanager
def _profiler(target: Target, first: int, last: int) -> Iterator[list[int]]:
    """Profiles what happens in the context and writes it; the caller adds the steps to the list that it gets."""
    directory = window_directory(target.workdir, first, last)
    if is_process_zero() and directory.is_dir():
        # Of an attempt with more processes, traces would be left.
        delete_tree(directory)
    done: list[int] = []
    with tempfile.TemporaryDirectory(prefix="rootstock-") as scratch:
        options = jax.profiler.ProfileOptions()
        # Python calls slow the host down and are not what a profile of steps is about.
        options.python_tracer_level = 0
        try:
            jax.profiler.start_trace(scratch, profiler_options=options)
        except RuntimeError as error:
            raise UserError(f"config.logging.profile_steps: the profiler cannot start: {error}") from None
        try:
            yield done
        finally:
            _stop_and_write(target, directory, Path(scratch), done)


def _stop_and_write(target: Target, directory: Path, scratch: Path, done: list[int]) -> None:
    """Stops the profiler and writes the trace of this process and, on process 0, what is needed to read it.

    A failure is only a warning.
    """
    traces = {
        trace_file(directory, jax.process_index()): "*.xplane.pb",
        perfetto_file(directory, jax.process_index()): "*.trace.json.gz",
    }
    try:
        jax.profiler.stop_trace()
        if not done:
            return
        for path, pattern in traces.items():
            for found in scratch.rglob(pattern):
                copy_file(found, path)
        if is_process_zero():
            # The step is compiled already, so this is its text.
            compiled = target.program.step.lower(target.program.state, target.program.batch).compile()
            write_window(directory, _window(target, done), compiled.as_text() or "")
            steps = f"steps {done[0]} to {done[-1]} are profiled"
            say(f"{target.job.title}: {steps}; rootstock profile --run={target.workdir} shows where their time goes")
    # Training does not depend on its profile.
    except (OSError, RuntimeError) as error:
        warn(f"{target.job.title}: the profile cannot be written: {one_line(error)}")


def _window(target: Target, done: list[int]) -> Window:
    settings = target.settings
    return Window(
        first=done[0],
        count=len(done),
        title=target.job.title,
        devices=jax.device_count(),
        device_kind=jax.devices()[0].device_kind,
        chip=attached_family(),
        model_flops=target.job.flops_per_step,
        tokens=settings.batch_size * settings.sequence_length,
        versions=f"jax {jax.__version__}, jaxlib {jaxlib.__version__}",
    )
