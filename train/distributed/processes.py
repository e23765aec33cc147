"""Many processes, one run: joins the cluster that JAX detects, and ends every process when one cannot go on.

What a process finds wrong it tells the others through JAX's coordination service, so that all of them end within
seconds with the same line instead of waiting in a collective for one that is gone.
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

# The coordination service's client has no public name; Orbax reaches it the same way.
from jax._src import distributed as jax_distributed

from configs.errors import UserError, end
from train.console import console, say
from train.distributed.preemption import Preempted

T = TypeVar("T")

START_TIMEOUT = 300  # seconds until all processes must have come
SILENT_SECONDS = 30  # after which a process that died without a word ends the others
HEARTBEAT_TIMEOUT = 60  # seconds after which JAX itself does, with a stack trace
_TALK_SECONDS = 10
_POLL_SECONDS = 2.0
_WEEK_MS = 7 * 24 * 3600 * 1000
# JAX itself reads only the first.
_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_ERROR = "rootstock/error"
_ALIVE = "rootstock/alive"
_SIGN_EVERY = 5  # polls
_results = itertools.count()
# Taken by the first thread that ends this process, and never given back.
_ending = threading.Lock()


def is_process_zero() -> bool:
    """Returns whether this process writes the run's files and talks: process 0, or the only one."""
    return jax_distributed.global_state.process_id == 0


def run_on_process_zero(action: Callable[[], T]) -> T:
    """Returns what `action` returns on process 0, which alone runs it; the others wait. The result must be JSON.

    An error there ends all of them: see `run_together`.
    """
    client = _client()
    if client is None:
        return action()
    key = f"rootstock/result/{next(_results)}"
    if not is_process_zero():
        return json.loads(client.blocking_key_value_get(key, _WEEK_MS))
    result = action()
    client.key_value_set(key, json.dumps(result))
    return result


def run_together(command: Callable[[], None], start_timeout: int = START_TIMEOUT, preemptible: bool = False) -> None:
    """Runs `command`, in step with the other processes where the environment has several; alone otherwise.

    Args:
        command: what every process runs.
        start_timeout: seconds to wait for the others to start.
        preemptible: `command` asks `preemption.notices`, so SIGTERM need not end it.

    Raises:
        Preempted: as `command` does, on all processes.
        UserError: the others cannot be joined, or what `command` raises: shown first where it is no user's mistake.
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
        # From here on nobody has anything to announce.
        _client().wait_at_barrier("rootstock/done", _WEEK_MS)
    except BaseException as error:
        _ending.acquire()
        if isinstance(error, UserError | KeyboardInterrupt):
            _announce(str(error) or "interrupted")
            raise
        traceback.print_exc()
        fault = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        _announce(fault)
        raise UserError(fault) from None
    done.set()
    listener.join()
    if preempted is not None:
        raise preempted


def _run(command: Callable[[], None]) -> Preempted | None:
    """Runs `command` and returns the `Preempted` that it ended with, which is no error to tell the others."""
    try:
        command()
    except Preempted as notice:
        return notice
    return None


def _client() -> Any:  # noqa: ANN401 - JAX's client has no public type
    """Returns the client of the coordination service, or None where this process is alone."""
    return jax_distributed.global_state.client if jax_distributed.global_state.num_processes > 1 else None


def _join(timeout: int, preemptible: bool) -> bool:
    """Joins the processes that the environment names or that JAX detects; returns whether there are others."""
    named = [name for name in _VARIABLES if os.environ.get(name)]
    number, index = _integer("JAX_NUM_PROCESSES"), _integer("JAX_PROCESS_ID")
    # One task of Slurm keeps all GPUs of its node: joined, JAX would leave it one.
    if number == 1 or (not named and os.environ.get("SLURM_NTASKS") == "1"):
        return False
    # That service swallows SIGTERM, which must end whatever does not ask it.
    jax.config.update("jax_enable_preemption_service", preemptible)
    started = threading.Event()
    threading.Thread(target=_wait_for_start, args=(started, timeout), daemon=True).start()
    try:
        jax.distributed.initialize(
            num_processes=number,
            process_id=index,
            cluster_detection_method="deactivate" if len(named) == len(_VARIABLES) else None,
            # JAX ends the process with a stack trace then; `_wait_for_start` comes before it.
            initialization_timeout=timeout + 60,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
        )
    # Detection asks environment variables, metadata servers and the API of Kubernetes.
    except Exception as error:
        if not named and "coordinator_address" in str(error):
            return False
        raise UserError(_cannot_join(" ".join(str(error).split()).rstrip("."))) from None
    finally:
        started.set()
    console.quiet = not is_process_zero()
    if _client() is None:
        return False
    # Python's own handlers wait for the main thread, which an abort never lets run.
    ctypes.CDLL(None).signal(signal.SIGABRT, _on_abort)
    return True


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _on_abort(_: int) -> None:
    """Has the last word where JAX aborts: it does, with a stack trace, when process 0 and its service are gone."""
    if is_process_zero():
        end("JAX ended this process, for what it says above", 1)
    end("JAX ended this process, most likely because process 0 is gone; run the same command again to go on", 1)


def _check_number() -> None:
    number = jax_distributed.global_state.num_processes
    expected = run_on_process_zero(lambda: number)
    if expected != number:
        raise UserError(_cannot_join(f"it was told of {number} processes, process 0 of {expected}"))


def _integer(variable: str) -> int | None:
    value = os.environ.get(variable)
    if value and not value.isdecimal():
        raise UserError(f"{variable} is {value!r}; legal: a number, or unset")
    return int(value) if value else None


def _cannot_join(fault: str) -> str:
    return (
        f"this process cannot join the others: {fault}; legal: what JAX detects (Slurm's srun, Cloud TPU, Open MPI, "
        f"Kubernetes), all of {', '.join(_VARIABLES)}, or JAX_NUM_PROCESSES=1 to run alone"
    )


def _wait_for_start(started: threading.Event, timeout: int) -> None:
    """Says after a while what this process waits for, and ends it after `timeout` seconds."""
    state = jax_distributed.global_state
    if started.wait(min(_TALK_SECONDS, timeout)):
        return
    where = state.coordinator_address or "the cluster"
    say(f"process {state.process_id} waits for the others at {where}")
    if not started.wait(timeout - _TALK_SECONDS):
        end(_cannot_join(f"not all came to {where} in {timeout} s"), 1)


def _listen(done: threading.Event) -> None:
    """Ends this process when another one announces an error, and all when process 0 finds one that is gone."""
    silent: dict[str, tuple[str, int]] = {}
    for poll in itertools.count():
        if done.wait(_POLL_SECONDS):
            return
        if poll % _SIGN_EVERY == 0:
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                _sign(silent)
        try:
            message = _client().key_value_try_get(_ERROR)
        # Nothing was announced; or the service is gone, which JAX ends the process for.
        except jax.errors.JaxRuntimeError:
            continue
        _ending.acquire()
        _meet()
        end(message, 1)


def _sign(silent: dict[str, tuple[str, int]]) -> None:
    """Gives a sign of life; process 0 counts for how long the others gave none, in `silent`: (their count, signs)."""
    client = _client()
    client.key_value_increment(f"{_ALIVE}/{jax_distributed.global_state.process_id}", 1)
    if not is_process_zero():
        return
    for name, count in client.key_value_dir_get(_ALIVE):
        before, signs = silent.get(name, ("", 0))
        silent[name] = (count, signs + 1 if count == before else 0)
        if silent[name][1] * _SIGN_EVERY * _POLL_SECONDS >= SILENT_SECONDS:
            number = name.rpartition("/")[2]
            end_all(
                f"process {number} gave no sign of life for {SILENT_SECONDS} s: its host died, hangs or is cut off; "
                "run the same command again to go on",
                1,
            )


def end_all(message: str, exit_code: int) -> None:
    """Ends this process with a line and a code, from any thread, after telling the others, which end with it too."""
    _ending.acquire()
    if _client() is not None:
        _announce(message)
    end(message, exit_code)


def _announce(message: str) -> None:
    """Tells the other processes why this one ends; returns when they know."""
    # Another process may have been first.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        _client().key_value_set(_ERROR, f"process {jax_distributed.global_state.process_id}: {message}")
    _meet()


def _meet() -> None:
    """Waits until every process knows of the error, or has not answered."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        _client().wait_at_barrier("rootstock/stopped", int(3000 * _POLL_SECONDS))
    # The service ends with process 0, and JAX kills those that still talk to it.
    if is_process_zero():
        time.sleep(0.5)
