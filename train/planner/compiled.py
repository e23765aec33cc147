"""Compiles the real train step for devices that are not attached; reads memory and collectives from the result."""

import contextlib
import dataclasses
import re
import time
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from train.planner.hlo import Collective, Module
from train.step import Program

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """XLA's figures for one device's part of a train step.

    Attributes:
        peak_bytes: peak memory.
        argument_bytes: state and batch.
        alias_bytes: bytes of the state that are updated in place because they are donated.
        seconds: compilation time, including tracing.
        collectives: collectives of one step.
        traffic: bytes read from and written to memory in one step.
        instructions: number of instructions in the module.
        fits: False if XLA ran out of memory; then `peak_bytes` is the requested size and the other fields are empty.
    """

    peak_bytes: float
    argument_bytes: float
    alias_bytes: float
    seconds: float
    collectives: tuple[Collective, ...]
    traffic: float
    instructions: int
    fits: bool


def compile_step(program: Program, mesh: Mesh) -> Compiled:
    """Returns the `Compiled` train step of a program on its mesh, whose devices need not be attached."""
    start = time.perf_counter()
    try:
        with jax.set_mesh(mesh), without_cache():
            compiled = program.step.lower(program.state, program.batch).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Compiled(_asked_for(str(error)), 0.0, 0.0, time.perf_counter() - start, (), 0.0, 0, fits=False)
    seconds = time.perf_counter() - start
    memory: Any = compiled.memory_analysis()
    whole = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    whole += memory.output_size_in_bytes - memory.alias_size_in_bytes
    module = Module(compiled.as_text() or "")
    return Compiled(
        # XLA's GPU compiler reports no peak, and the CPU's leaves the temporaries out.
        peak_bytes=memory.peak_memory_in_bytes if mesh.devices.flat[0].platform == "tpu" else whole,
        argument_bytes=memory.argument_size_in_bytes,
        alias_bytes=memory.alias_size_in_bytes,
        seconds=seconds,
        collectives=tuple(module.collectives()),
        traffic=module.memory_traffic(),
        instructions=module.instructions(),
        fits=True,
    )


@contextlib.contextmanager
def without_cache() -> Iterator[None]:
    """A context without JAX's compilation cache.

    Programs for devices that are not attached can be written to the cache but not read back, and programs from the
    cache do not repeat compiler warnings.
    """
    enabled = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    jax.config.update("jax_enable_compilation_cache", False)
    # JAX reads the flag once, unless its cache is reset.
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()


def _asked_for(message: str) -> float:
    """Returns the bytes that a program needs according to XLA's out-of-memory message, or 0 if it has no number."""
    found = re.search(r"(?:temporaries \(|Used )([\d.]+)([KMGT])", message)
    return float(found[1]) * _UNITS[found[2]] if found else 0.0
