"""Parameters and held-out rows -> figures: nats per token and bits per byte, or a classifier's predictions.

B batch, T length, V vocabulary or classes.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from data.loader import Rows, evaluation_batches
from model.heads import Objective
from model.transformer import Batch, Params
from train.mesh import local_places, put_batch, replicated

Figures = dict[str, float]


class Predictions(NamedTuple):
    """Of held-out examples, in the order of the rows: true classes and float32 logits (examples, classes)."""

    labels: np.ndarray
    logits: np.ndarray


def language_model_evaluator(
    objective: Objective, token_bytes: np.ndarray, rows: Rows, batch_size: int, limit: int, mesh: Mesh
) -> Callable[[Params], Figures]:
    """Returns parameters -> {"loss": nats a target token, "bits_per_byte", "targets"} over the rows.

    Args:
        objective: a language model.
        token_bytes: UTF-8 bytes that each token stands for, so that models of other tokenizers compare.
        rows: held-out rows.
        batch_size: rows at once.
        limit: batches, 0 for all.
        mesh: where it runs.
    """

    def sums(params: Params, batch: Batch, token_bytes: jax.Array) -> jax.Array:
        nll_BT = objective.predict(params, batch)
        bytes_BT = token_bytes[batch["targets"]] * batch["weights"]
        return jnp.stack([(nll_BT * batch["weights"]).sum(), batch["weights"].sum(), bytes_BT.sum()])

    compiled = jax.jit(sums, out_shardings=replicated(mesh))

    def evaluate(params: Params) -> Figures:
        # Added up in float64 on the host: float32 would lose the last digits of a long validation part.
        total = np.zeros(3)
        for batch in evaluation_batches(rows, batch_size, limit, local_places(mesh, batch_size)):
            total += np.asarray(compiled(params, put_batch(batch, mesh), token_bytes), np.float64)
        nll, targets, size = total.tolist()
        return {"loss": nll / targets, "bits_per_byte": nll / math.log(2) / max(size, 1.0), "targets": int(targets)}

    return evaluate


def predict(objective: Objective, params: Params, rows: Rows, batch_size: int, mesh: Mesh) -> Predictions:
    """Returns a classifier's `Predictions` on every example of the rows."""
    compiled = _compiled_predict(objective.predict, mesh)
    labels, logits = [], []
    for batch in evaluation_batches(rows, batch_size, 0, local_places(mesh, batch_size)):
        # Every process gets all rows' answers, also of rows that it did not read.
        weights_BT, targets_BT, logits_BTV = map(np.asarray, compiled(params, put_batch(batch, mesh)))
        labels.append(targets_BT[weights_BT > 0])
        logits.append(logits_BTV[weights_BT > 0])
    return Predictions(np.concatenate(labels), np.concatenate(logits))


@functools.lru_cache(maxsize=8)
def _compiled_predict(
    function: Callable[[Params, Batch], jax.Array], mesh: Mesh
) -> Callable[..., tuple[jax.Array, jax.Array, jax.Array]]:
    def predictions(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
        return batch["weights"], batch["targets"], function(params, batch)

    return jax.jit(predictions, out_shardings=replicated(mesh))


def classification_figures(predictions: Predictions) -> Figures:
    """Returns {"loss": nats an example, "accuracy"} of a classifier; what the loop logs while it trains."""
    labels, logits = predictions
    shifted = logits - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    nll = -log_p[np.arange(len(labels)), labels]
    return {"loss": float(nll.mean()), "accuracy": float((logits.argmax(-1) == labels).mean())}
