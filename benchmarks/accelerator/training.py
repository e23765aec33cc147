"""Train steps with the settings that the planner ranks first: speed, MFU, and peak memory beside its prediction."""

import itertools
import statistics
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from benchmarks.accelerator.chip import attached_topology
from benchmarks.accelerator.sizes import config_of
from model.adapt import adapt
from model.adaptation import Adaptation, Quantization
from model.attend import attention_backend
from model.flops import training_flops_per_token
from model.heads import Objective, parameter_count
from train.distributed.mesh import make_mesh
from train.hardware import peak_flops
from train.planner.estimate import Work, estimate, tree_bytes
from train.planner.pricing import roofline, usable_bytes
from train.planner.topology import parse_topology
from train.planner.trace import trace
from train.settings import Settings, from_config, planned_model
from train.step import Program, make_program, objective_of
from train.trees import boxed_params

_CHUNKS = (0, 512)
_REMATS = ("none", "dots", "full")


def ranked(model: str, rows: int, length: int, attention: str = "auto") -> list[tuple[Settings, Work]]:
    """Returns settings (remat, loss chunk) with their estimates: what fits first, then the fastest, the least memory.

    On a machine whose chip is not in the table, the order is that of an H100.
    """
    topology = attached_topology() or parse_topology("h100-1")
    found = []
    for remat, chunk in itertools.product(_REMATS, [chunk for chunk in _CHUNKS if length % (chunk or 1) == 0]):
        config = config_of(model, rows * jax.device_count(), length)
        config.model.remat, config.model.attention, config.loss.chunk = remat, attention, chunk
        settings = from_config(config.to_dict())
        planned = planned_model(settings)
        mesh = make_mesh(settings.mesh)
        traced = trace(settings, planned)
        state = make_program(objective_of(settings, planned), settings, mesh).state
        work = estimate(settings, planned, traced, state, dict(mesh.shape), topology.chip)
        tokens = settings.batch_size * length
        seconds = roofline(topology, tokens * traced.flops, work.traffic, work.link_bytes, work.network_bytes)
        fits = sum(work.buffers.values()) * topology.chip.devices <= usable_bytes(topology)
        key = (not fits, float(f"{max(seconds.values()):.3g}"), sum(work.buffers.values()))
        found.append((key, settings, work))
    return [(settings, work) for _, settings, work in sorted(found, key=lambda one: one[0])]


def measure(model: str, rows: int, length: int, steps: int, rank: int, attention: str) -> dict[str, Any]:
    """Returns the figures of one setting's train step.

    Args:
        model: key of `SHAPES`.
        rows: rows per device.
        length: tokens per row.
        steps: timed steps.
        rank: which of the planner's settings, from 0.
        attention: the backend; "auto": the platform's fastest.
    """
    settings, work = ranked(model, rows, length, attention)[rank]
    planned = planned_model(settings)
    mesh = make_mesh(settings.mesh)
    program = make_program(objective_of(settings, planned), settings, mesh)
    chosen = {"remat": planned.remat, "chunk": settings.loss.chunk, "predicted_bytes": sum(work.buffers.values())}
    with jax.set_mesh(mesh):
        chosen["attention"] = attention_backend(planned, length)
    flops = training_flops_per_token(planned, length)
    return {"model": model, "rows": rows, "length": length} | chosen | _timed(program, settings, mesh, steps, flops)


def adapter(model: str, rows: int, length: int, steps: int, quantization: Quantization) -> dict[str, Any]:
    """Returns the figures of a LoRA train step: rank 8 on query and value, the other weights frozen.

    Args:
        model: key of `SHAPES`.
        rows: rows per device.
        length: tokens per row.
        steps: timed steps.
        quantization: of the frozen matrices; "none": bfloat16.
    """
    config = config_of(model, rows * jax.device_count(), length)
    config.loss.chunk = _CHUNKS[-1] if length % _CHUNKS[-1] == 0 else 0
    # Each device has the whole model: not every number of devices divides the blocks of NF4.
    config.mesh.data, config.mesh.fsdp = -1, 1
    settings = from_config(config.to_dict())
    mesh = make_mesh(settings.mesh)
    objective: Objective = objective_of(settings, planned_model(settings))
    how = Adaptation("lora", 0, 8, 16.0, ("query", "value"), quantization)
    program = make_program(adapt(objective, how), settings, mesh)
    counts = {
        "trained": parameter_count(program.state.params),
        # Arrays of codes have fewer elements than weights.
        "parameters": parameter_count(boxed_params(objective)),
        "frozen_bytes": int(tree_bytes(program.state.frozen)),
    }
    found = _timed(program, settings, mesh, steps, 0.0)
    return {"model": model, "rows": rows, "length": length, "quantization": quantization} | found | counts


def _timed(program: Program, settings: Settings, mesh: Mesh, steps: int, flops_per_token: float) -> dict[str, Any]:
    """Returns compile time, compiled and measured peak memory, step times, tokens/s, MFU and losses."""
    with jax.set_mesh(mesh):
        start = time.perf_counter()
        step = program.step.lower(program.state, program.batch).compile()
        compile_seconds = time.perf_counter() - start
        state = program.initialize(jax.random.key_data(jax.random.key(0)))
        batch = jax.device_put(_random_batch(settings), jax.tree.map(lambda x: x.sharding, program.batch))
        times, losses = [], []
        for _ in range(steps + 2):
            start = time.perf_counter()
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
            times.append(time.perf_counter() - start)
    times = sorted(times[2:])
    seconds = statistics.median(times)
    tokens = settings.batch_size * settings.sequence_length
    peak = peak_flops()
    return {
        "parameters": parameter_count(program.state.params) + parameter_count(program.state.frozen),
        "compile_seconds": compile_seconds,
        "compiled_bytes": _compiled_peak(step),
        "peak_bytes": (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
        "step_seconds": [times[0], seconds, times[-1]],
        "tokens_per_second": tokens / seconds,
        "mfu": flops_per_token * tokens / seconds / peak if peak and flops_per_token else None,
        "losses": [losses[0], losses[-1]],
    }


def _compiled_peak(step: Any) -> int:
    """Returns the bytes that the compiler gives a step: arguments, results and temporaries."""
    memory = step.memory_analysis()
    whole = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return whole + memory.output_size_in_bytes - memory.alias_size_in_bytes


def _random_batch(settings: Settings) -> dict[str, np.ndarray]:
    shape = (settings.batch_size, settings.sequence_length)
    tokens = np.random.default_rng(0).integers(0, settings.model["vocab_size"], (shape[0], shape[1] + 1), np.int32)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": np.ones(shape, np.int32),
        "positions": np.tile(np.arange(shape[1], dtype=np.int32), (shape[0], 1)),
        "weights": np.ones(shape, np.float32),
    }
