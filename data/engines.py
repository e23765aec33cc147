"""Runs a function on many jobs: in this process, in processes of this machine, or on a Ray cluster.

A job is a pure function of its arguments that writes files, so jobs may run anywhere, in any order, and twice.
"""

import contextlib
import dataclasses
import importlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import Any

from configs.errors import UserError
from data.storage.errors import bucket_errors, is_file_error

ENGINES = ("processes", "ray")
Function = Callable[[Any], None]
# (function, jobs, called after each job) -> when all jobs are done.
Map = Callable[[Function, Sequence[Any], Callable[[], None]], None]
_Error = UserError | OSError
_RAY_JOBS_PER_CORE = 2  # submitted at a time


@dataclasses.dataclass(frozen=True)
class Engine:
    """Where jobs run.

    Attributes:
        name: "processes" of this machine, or "ray".
        processes: how many at a time; 0: one per core of this machine, or as many as the Ray cluster runs.
        part: (i, n): this command runs only jobs i, i + n, i + 2n, ... of the current stage; None: all jobs.
    """

    name: str = "processes"
    processes: int = 0
    part: tuple[int, int] | None = None


def parse_part(text: str) -> tuple[int, int]:
    """Returns (i, n) of "i/n".

    Raises:
        UserError: not two whole numbers with 0 <= i < n.
    """
    first, _, second = text.partition("/")
    if not (first.isdecimal() and second.isdecimal() and int(first) < int(second)):
        raise UserError(f"--unit={text}; expected I/N with 0 <= I < N, such as 0/64")
    return int(first), int(second)


def cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def start(engine: Engine) -> Iterator[Map]:
    """Yields a function that runs jobs; its processes start with the first of them and end with the block.

    Raises:
        UserError: the engine is unknown or not installed, or what the first failed job raised.
    """
    if engine.name not in ENGINES or engine.processes < 0:
        raise UserError(
            f"engine={engine.name!r}, processes={engine.processes}; expected {' or '.join(ENGINES)}, 0 or more"
        )
    if engine.name == "ray":
        yield _ray_map(engine.processes)
        return
    count = engine.processes or cores()
    if count == 1:
        yield run_here
        return
    with _pool(count) as pool:
        yield lambda function, jobs, finished: _run_in_pool(pool, function, jobs, finished)


def run_here(function: Function, jobs: Sequence[Any], finished: Callable[[], None]) -> None:
    """A `Map` in this process."""
    for job in jobs:
        function(job)
        finished()


@contextlib.contextmanager
def _pool(count: int) -> Iterator[ProcessPoolExecutor]:
    """Yields a pool whose processes end at once when the block raises, or when this process is killed."""
    # Spawned, because forking a process in which JAX has started threads can hang.
    context = multiprocessing.get_context("spawn")
    # Only this process has the writing end, so its end, however it comes, is an EOF for every reader.
    reader, writer = context.Pipe(duplex=False)
    with ProcessPoolExecutor(count, mp_context=context, initializer=_begin_worker, initargs=(reader,)) as pool:
        try:
            yield pool
        except BaseException:
            writer.close()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
            writer.close()
            reader.close()


def _begin_worker(parent: Connection) -> None:
    # The parent handles Ctrl-C and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _use_one_core()

    def end_with_parent() -> None:
        with contextlib.suppress(EOFError, OSError):
            parent.recv()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _use_one_core() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _run_in_pool(
    pool: ProcessPoolExecutor, function: Function, jobs: Sequence[Any], finished: Callable[[], None]
) -> None:
    waiting = {pool.submit(_error_of, function, job): number for number, job in enumerate(jobs)}
    errors: dict[int, _Error] = {}
    # After an error, the jobs before it go on, so that the error is the first one whatever the number of processes.
    while any(number < min(errors, default=len(jobs)) for number in waiting.values()):
        done, _ = wait(waiting, return_when=FIRST_COMPLETED)
        for future in done:
            number = waiting.pop(future)
            error = _result(future)
            if error is None:
                finished()
            else:
                errors[number] = error
    if errors:
        raise errors[min(errors)]


def _result(future: "Future[_Error | None]") -> _Error | None:
    try:
        return future.result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, perhaps because memory ran out; finished units are kept: run the same "
            "command again, with a smaller --processes or --unit_megabytes"
        ) from None


def _error_of(function: Function, job: Any) -> _Error | None:  # noqa: ANN401 - a job's arguments
    """Runs a job; returns its error, because not every library can send an exception to another process."""
    try:
        with bucket_errors():
            function(job)
    except UserError as error:
        return error
    except OSError as error:
        if not is_file_error(error):
            raise
        return error
    return None


def _ray_map(count: int) -> Map:
    try:
        ray = importlib.import_module("ray")
    except ImportError:
        raise UserError("--engine=ray needs the ray package: pip install -e '.[ray]'") from None
    if not ray.is_initialized():
        # Connects to the cluster at RAY_ADDRESS, or starts one on this machine.
        ray.init(include_dashboard=False, log_to_driver=False)

    def run(function: Function, jobs: Sequence[Any], finished: Callable[[], None]) -> None:
        remote = ray.remote(_error_on_ray)
        limit = count or _RAY_JOBS_PER_CORE * max(int(ray.cluster_resources().get("CPU", 1)), 1)
        todo = list(reversed(jobs))
        running: list[Any] = []
        while todo or running:
            while todo and len(running) < limit:
                running.append(remote.remote(function, todo.pop()))
            done, running = ray.wait(running)
            for reference in done:
                error = ray.get(reference)
                if error is not None:
                    raise error
                finished()

    return run


def _error_on_ray(function: Function, job: Any) -> _Error | None:  # noqa: ANN401 - a job's arguments
    _use_one_core()
    return _error_of(function, job)
