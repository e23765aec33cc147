"""One run in several processes: joins the cluster that JAX detects, and ends all processes when one fails.

A process that fails announces its error through JAX's coordination service. All others then end within seconds with
the same line, instead of blocking forever in a collective.
"""

import contextlib
import ctypes
import itertools
import json
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax._src import distributed as jax_distributed

from configs.errors import UserError, end
from train.console import console, say
from train.distributed import sigterm
from train.distributed.preemption import Preempted

T = TypeVar("T")

START_TIMEOUT = 300  # seconds in which all processes must join
SILENT_SECONDS = 30  # without a heartbeat of ours from a process, until the others end
HEARTBEAT_TIMEOUT = 60  # seconds until JAX itself ends them, with a stack trace
_TALK_SECONDS = 10
_POLL_SECONDS = 2.0
# Clouds and Kubernetes give 30 seconds after SIGTERM; until then the others may still join, and all end together.
_JOIN_GRACE_SECONDS = 20
_WEEK_MS = 7 * 24 * 3600 * 1000
# JAX itself reads only the first.
_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_ERROR = "rootstock/error"
_ALIVE = "rootstock/alive"
_HEARTBEAT_EVERY = 5  # polls
_results = itertools.count()
# Acquired by the first thread that ends this process, and never released.
_ending = threading.Lock()


def is_process_zero() -> bool:
    """Returns whether this process writes the run's files and prints: process 0, or the only one."""
    return _cluster().process_id == 0


def run_on_process_zero(action: Callable[[], T]) -> T:
    """Runs `action` on process 0 only and returns its result, which must be JSON, on every process.

    All processes must call this in the same order. An error in `action` ends all processes: see `run_together`.

    Raises:
        RuntimeError: process 0 sent the result of another action: the processes took different branches.
    """
    client = _client()
    if client is None:
        return action()
    number = next(_results)
    key, name = f"rootstock/result/{number}", getattr(action, "__qualname__", repr(action))
    if not is_process_zero():
        sent, result = json.loads(client.blocking_key_value_get(key, _WEEK_MS))
        if sent != name:
            raise RuntimeError(f"result {number} from process 0 is of {sent}; this process expected {name}")
        return result
    result = action()
    client.key_value_set(key, json.dumps([name, result]))
    return result


def run_together(command: Callable[[], None], start_timeout: int = START_TIMEOUT, preemptible: bool = False) -> None:
    """Runs `command` on every process of the cluster that the environment describes; in this process alone otherwise.

    Args:
        command: what every process runs.
        start_timeout: seconds to wait for the other processes to start.
        preemptible: `command` polls `preemption.notices`, so SIGTERM need not end the process.

    Raises:
        Preempted: `command` raised it, on all processes.
        UserError: this process cannot join the others, or `command` failed; an unexpected exception is printed with its
            traceback first.
    """
    if not _join(start_timeout, preemptible):
        command()
        return
    done = threading.Event()
    listener = threading.Thread(target=_listen, args=(done,), daemon=True)
    listener.start()
    try:
        _check_number()
        preempted = _run(command)
        # After this barrier no process can announce an error.
        _client().wait_at_barrier("rootstock/done", _WEEK_MS)
    except BaseException as error:
        _ending.acquire()
        if isinstance(error, UserError | KeyboardInterrupt | BrokenPipeError):
            _announce(str(error) or "interrupted")
            raise
        traceback.print_exc()
        message = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        _announce(message)
        raise UserError(message) from None
    done.set()
    listener.join()
    if preempted is not None:
        raise preempted


def _run(command: Callable[[], None]) -> Preempted | None:
    """Runs `command` and returns the `Preempted` that it raised: all processes raise it, so none announces it."""
    try:
        command()
    except Preempted as notice:
        return notice
    return None


def _cluster() -> jax_distributed.State:
    """Returns JAX's view of the cluster: `process_id`, `num_processes`, `coordinator_address`, `client`.

    The only use of JAX's private API here, since the client of the coordination service has no public name; Orbax
    reaches it the same way. Written against jax/_src/distributed.py of JAX 0.10.2.
    """
    return jax_distributed.global_state


def _client() -> Any:  # noqa: ANN401 - JAX's client has no public type
    """Returns the client of the coordination service, or None if this process is alone."""
    return _cluster().client if _cluster().num_processes > 1 else None


def _join(timeout: int, preemptible: bool) -> bool:
    """Joins the processes that the environment names or that JAX detects; returns whether there are others.

    SIGTERM is deferred meanwhile: once all have joined, JAX's preemption service ends all of them at the same step.
    """
    with sigterm.defer() as received:
        joined = _initialize(timeout, preemptible, received)
    if not joined:
        # JAX's service may have replaced the handler although this process is alone.
        sigterm.catch()
    if received.is_set():
        os.kill(os.getpid(), signal.SIGTERM)
    return joined


def _initialize(timeout: int, preemptible: bool, received: threading.Event) -> bool:
    named = [name for name in _VARIABLES if os.environ.get(name)]
    number, index = _integer("JAX_NUM_PROCESSES"), _integer("JAX_PROCESS_ID")
    # A single Slurm task must keep all GPUs of its node; JAX would leave it one.
    if number == 1 or (not named and os.environ.get("SLURM_NTASKS") == "1"):
        return False
    # The service catches SIGTERM, which would then not end a command that does not ask for notices.
    jax.config.update("jax_enable_preemption_service", preemptible)
    started = threading.Event()
    threading.Thread(target=_wait_for_start, args=(started, timeout, received), daemon=True).start()
    try:
        jax.distributed.initialize(
            num_processes=number,
            process_id=index,
            cluster_detection_method="deactivate" if len(named) == len(_VARIABLES) else None,
            # After this JAX ends the process with a stack trace; `_wait_for_start` ends it earlier.
            initialization_timeout=timeout + 60,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
        )
    # Detection queries environment variables, metadata servers and the Kubernetes API: anything can be raised.
    except Exception as error:
        if not named and "coordinator_address" in str(error):
            return False
        raise UserError(_cannot_join(" ".join(str(error).split()).rstrip("."))) from None
    finally:
        started.set()
    console.quiet = not is_process_zero()
    if _client() is None:
        return False
    # A handler in Python would wait for the main thread, which does not run again after an abort.
    ctypes.CDLL(None).signal(signal.SIGABRT, _on_abort)
    return True


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _on_abort(_: int) -> None:
    """Prints our line last when JAX aborts with a stack trace, as it does when process 0 and its service are gone."""
    if is_process_zero():
        end("JAX ended this process for the reason printed above", 1)
    end("JAX ended this process, most likely because process 0 died; run the same command again to resume", 1)


def _check_number() -> None:
    number = _cluster().num_processes
    expected = run_on_process_zero(lambda: number)
    if expected != number:
        raise UserError(_cannot_join(f"it is configured for {number} processes, process 0 for {expected}"))


def _integer(variable: str) -> int | None:
    value = os.environ.get(variable)
    if value and not value.isdecimal():
        raise UserError(f"{variable}={value!r} must be a number or unset")
    return int(value) if value else None


def _cannot_join(reason: str) -> str:
    return (
        f"this process cannot join the others: {reason}; expected a cluster that JAX detects (Slurm's srun, Cloud TPU, "
        f"Open MPI, Kubernetes), all of {', '.join(_VARIABLES)}, or JAX_NUM_PROCESSES=1 to run alone"
    )


def _wait_for_start(started: threading.Event, timeout: int, received: threading.Event) -> None:
    """Prints after a while what this process waits for; ends it after `timeout` seconds, or soon after SIGTERM."""
    announced, notice_seconds = False, 0.0
    for waited in itertools.count():
        if started.wait(1.0):
            return
        where = _cluster().coordinator_address or "the cluster"
        if waited >= timeout:
            end(_cannot_join(f"not all processes joined {where} within {timeout} s"), 1)
        if waited >= _TALK_SECONDS and not announced:
            announced = True
            say(f"process {_cluster().process_id} waits for the others at {where}")
        notice_seconds += received.is_set()
        if notice_seconds >= _JOIN_GRACE_SECONDS:
            end(sigterm.MESSAGE, sigterm.EXIT_CODE)


def _listen(done: threading.Event) -> None:
    """Ends this process when another announces an error; process 0 ends all when one sends no heartbeat."""
    silent: dict[str, tuple[str, int]] = {}
    for poll in itertools.count():
        if done.wait(_POLL_SECONDS):
            return
        if poll % _HEARTBEAT_EVERY == 0:
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                _send_heartbeat(silent)
        try:
            message = _client().key_value_try_get(_ERROR)
        # No error was announced; or the service is gone, and JAX ends the process.
        except jax.errors.JaxRuntimeError:
            continue
        _ending.acquire()
        _meet()
        end(message, 1)


def _send_heartbeat(silent: dict[str, tuple[str, int]]) -> None:
    """Sends a heartbeat; process 0 ends all processes when one is silent for too long.

    Args:
        silent: process -> (its last count of heartbeats, for how many of ours that has not changed); updated.
    """
    client = _client()
    client.key_value_increment(f"{_ALIVE}/{_cluster().process_id}", 1)
    if not is_process_zero():
        return
    for name, count in client.key_value_dir_get(_ALIVE):
        before, missed = silent.get(name, ("", 0))
        silent[name] = (count, missed + 1 if count == before else 0)
        if silent[name][1] * _HEARTBEAT_EVERY * _POLL_SECONDS >= SILENT_SECONDS:
            number = name.rpartition("/")[2]
            end_all(
                f"process {number} sent no heartbeat for {SILENT_SECONDS} s: its host died, hangs or is unreachable; "
                "run the same command again to resume",
                1,
            )


def end_all(message: str, exit_code: int) -> None:
    """Ends this process with a line and an exit code, from any thread; the others end with the same line."""
    _ending.acquire()
    if _client() is not None:
        _announce(message)
    end(message, exit_code)


def _announce(message: str) -> None:
    """Announces to the other processes why this one ends; returns when they have read it."""
    # Another process may have announced its error first.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        _client().key_value_set(_ERROR, f"process {_cluster().process_id}: {message}")
    _meet()


def _meet() -> None:
    """Waits until every process has read the error, or a few seconds."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        _client().wait_at_barrier("rootstock/stopped", int(3000 * _POLL_SECONDS))
    # The service ends with process 0, and JAX aborts processes that are still connected.
    if is_process_zero():
        time.sleep(0.5)
