"""Preemption notices: SIGTERM, as schedulers, Kubernetes and Cloud TPU send it before they take a machine away.

The current step is finished and saved, and the process ends with its own exit code, on all hosts after the same step.
"""

import contextlib
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

from configs.errors import UserError
from train.distributed import sigterm


class Preempted(UserError):
    """SIGTERM was received, and the state is saved."""

    exit_code = sigterm.EXIT_CODE


@contextlib.contextmanager
def notices() -> Iterator[Callable[[int], bool]]:
    """Yields a function of the number of steps done: whether to save and end now, the same on every host.

    Every host must call it after every step. Several hosts agree on a step through JAX's preemption service, which
    catches the signal on any of them (`train/distributed/processes.py` starts it).
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    with sigterm.hold() as received:
        yield lambda step: received.is_set()
