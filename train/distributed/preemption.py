"""A notice that the machine will be taken away: SIGTERM, as schedulers, Kubernetes and Cloud TPU send it.

The step at hand is finished and saved, and the process ends with a code of its own, on all hosts at the same step.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

from configs.errors import UserError


class Preempted(UserError):
    """The run was told to end, and saved what it had."""

    # EX_TEMPFAIL of sysexits.h: not done, and worth another start.
    exit_code = 75


@contextlib.contextmanager
def notices() -> Iterator[Callable[[int], bool]]:
    """Yields a function of the number of steps done: whether to save and end now, the same on every host.

    Each host must ask after each step. Several hosts agree on a step through JAX's preemption service, which catches
    the signal on any of them (`train/distributed/processes.py` starts it).
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    told = threading.Event()
    # Python delivers signals to the main thread alone.
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False
        return

    def handle(*_: Any) -> None:  # noqa: ANN401 - the signal's number and frame
        told.set()

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield lambda step: told.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)
