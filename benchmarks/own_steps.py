"""Rootstock's own train steps on random tokens, a few at a time, for benchmarks that take turns with a peer."""

import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from model.adapt import adapt
from model.adaptation import Adaptation
from model.heads import language_model, parameter_count
from train.distributed.mesh import single_device_mesh
from train.settings import complete_model, from_config
from train.step import make_program, objective_of


def own_steps(config: ConfigDict, steps: int, adaptation: Adaptation | None = None, answer: int = 0) -> Iterator[Any]:
    """Yields {"jax", "parameters"}, then for each `next` (seconds, CPU seconds, last loss) of `steps` train steps.

    The batch has `config.batch_size` rows of `config.sequence_length` tokens; the vocabulary is `config.model`'s. Only
    the parameters that `adaptation` selects are trained. With `answer`, only so many tokens at the end of a row are in
    the loss, and the objective is that of a task that generates text.
    """
    settings = from_config(config.to_dict())
    rows, length, vocab_size = settings.batch_size, settings.sequence_length, config.model.vocab_size
    mesh = single_device_mesh()
    model = complete_model(settings, vocab_size)
    objective = language_model(model, few_targets=True) if answer else objective_of(settings, model)
    program = make_program(adapt(objective, adaptation) if adaptation else objective, settings, mesh)
    tokens = np.random.default_rng(0).integers(0, vocab_size, (rows, length + 1), np.int32)
    batch = {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": np.ones_like(tokens[:, 1:]),
        "positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        "weights": np.ones(tokens[:, 1:].shape, np.float32),
    }
    batch["weights"][:, : length - (answer or length)] = 0.0
    with jax.set_mesh(mesh):
        state = program.initialize(jax.random.key_data(jax.random.key(0)))
        yield {"jax": jax.__version__, "parameters": parameter_count(program.state.params | program.state.frozen)}
        while True:
            start, used = time.perf_counter(), time.process_time()
            for _ in range(steps):
                state, metrics = program.step(state, batch)
            loss = float(metrics["loss"])
            yield time.perf_counter() - start, time.process_time() - used, loss
