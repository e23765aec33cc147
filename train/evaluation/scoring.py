"""Parameters and held-out rows -> metrics: nats per token and bits per byte, or a head's outputs for each example.

B batch, T length.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from data.examples import ExampleRows
from data.loader import Rows, evaluation_batches
from model.heads import Objective
from model.transformer import Batch, Params
from train.corpus.opened import HeldOut
from train.distributed.placement import local_places, put_batch, replicated
from train.distributed.watchdog import tick

Metrics = dict[str, float]


def language_model_evaluator(
    objective: Objective,
    token_bytes: np.ndarray,
    held_out: Mapping[str, HeldOut],
    batch_size: int,
    limit: int,
    mesh: Mesh,
) -> Callable[[Params], Metrics]:
    """Returns parameters -> {"loss": nats per target token, "bits_per_byte", "targets"} over held-out rows.

    Of several sources, the first two are those of text in which each source has its share, and "loss/NAME" and
    "bits_per_byte/NAME" are those of a source.

    Args:
        objective: a language model.
        token_bytes: number of UTF-8 bytes of each token; bits per byte compare models with different tokenizers.
        held_out: {name of the source: its rows}.
        batch_size: rows per batch.
        limit: maximum number of batches of each source; 0: all.
        mesh: the devices it runs on.
    """

    def sums(params: Params, batch: Batch, token_bytes: jax.Array) -> jax.Array:
        nll_BT = objective.predict(params, batch)
        bytes_BT = token_bytes[batch["targets"]] * batch["weights"]
        return jnp.stack([(nll_BT * batch["weights"]).sum(), batch["weights"].sum(), bytes_BT.sum()])

    compiled = jax.jit(sums, out_shardings=replicated(mesh))

    def sums_of(params: Params, rows: Rows) -> np.ndarray:
        # Summed in float64 on the host, because float32 loses digits over a long validation part.
        total = np.zeros(3)
        for batch in evaluation_batches(rows, batch_size, limit, local_places(mesh, batch_size)):
            total += np.asarray(compiled(params, put_batch(batch, mesh), token_bytes), np.float64)
            tick("a batch of evaluation")
        return total

    def evaluate(params: Params) -> Metrics:
        return mixed_metrics({name: (sums_of(params, each.rows), each.share) for name, each in held_out.items()})

    return evaluate


def mixed_metrics(sums: Mapping[str, tuple[np.ndarray, float]]) -> Metrics:
    """Returns the metrics of `language_model_evaluator`.

    Args:
        sums: {name of the source: ((nats, targets, bytes), its share of the text)}.
    """
    targets = sum(total[1] for total, _ in sums.values())
    # Each source counts as if it had its share of the targets.
    metrics = _figures(sum(total * (share * targets / total[1]) for total, share in sums.values()))
    metrics["targets"] = int(targets)
    if len(sums) > 1:
        for name, (total, _) in sums.items():
            metrics |= {f"{figure}/{name}": value for figure, value in _figures(total).items()}
    return metrics


def _figures(total: np.ndarray) -> Metrics:
    nll, targets, size = total.tolist()
    return {"loss": nll / targets, "bits_per_byte": nll / math.log(2) / max(size, 1.0)}


def head_outputs(
    objective: Objective, params: Params, rows: ExampleRows, batch_size: int, mesh: Mesh
) -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
    """Yields (example index, the head's output at the tokens of each of its segments), once per example."""
    compiled = _compiled(objective.predict, mesh)
    batches = evaluation_batches(rows, batch_size, 0, local_places(mesh, batch_size))
    for t, batch in enumerate(batches):
        # Every process gets the outputs of all rows, also of rows that it did not read.
        outputs = np.asarray(compiled(params, put_batch(batch, mesh)))
        tick("a batch of evaluation")
        for row, output in zip(range(t * batch_size, len(rows)), outputs, strict=False):
            for example, places in rows.segment_slices(row):
                yield example, tuple(output[place] for place in places)


def held_out_loss(objective: Objective, params: Params, rows: Rows, batch_size: int, mesh: Mesh) -> float:
    """Returns the mean loss over all rows: nats per target, or the units of the head's loss."""
    compiled = _compiled(objective.loss, mesh)
    batches = evaluation_batches(rows, batch_size, 0, local_places(mesh, batch_size))
    sums = [jax.device_get(compiled(params, put_batch(batch, mesh))) for batch in batches]
    return float(np.sum([s.nll for s in sums], dtype=np.float64) / np.sum([s.weight for s in sums], dtype=np.float64))


@functools.lru_cache(maxsize=8)
def _compiled(function: Callable[[Params, Batch], Any], mesh: Mesh) -> Callable[..., Any]:
    return jax.jit(function, out_shardings=replicated(mesh))
