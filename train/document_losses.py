"""Which documents of a batch a loss came from: one mean a document, and a language model's worst tokens."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from data.examples import ExampleRows
from data.loader import Batch, BatchFunction
from data.tokenizer import Tokenizer
from model.heads import Objective
from model.transformer import Params
from train.decode import whole
from train.mesh import local_places, put_batch

_WORST_TOKENS = 3


class Document(NamedTuple):
    """A document, or an example, of a batch.

    Attributes:
        row: number of the row that holds it.
        number: which of the row's, counted from 1.
        loss: mean over its targets: nats of a language model, else what the head's loss is measured in.
        targets: how many.
        text: of its tokens.
        worst: (token, its loss) of a language model's worst targets, the worst first.
    """

    row: int
    number: int
    loss: float
    targets: int
    text: str
    worst: list[tuple[str, float]]


def document_losses(
    objective: Objective,
    params: Params,
    function: BatchFunction,
    t: int,
    tokenizer: Tokenizer,
    mesh: Mesh,
    by_token: bool,
) -> list[Document]:
    """Returns the documents of batch t that have targets, the worst first; on a mesh, by all processes together.

    Args:
        objective: what is trained.
        params: all of its parameters.
        function: the global batch (`places` None).
        t: the step, counted from 0.
        tokenizer: of the rows.
        mesh: where it runs.
        by_token: `objective.predict` is each target's loss; else the objective is asked of one document at a time.
    """
    batch, numbers = function(t), function.row_numbers(t)
    score = _by_token if by_token else _one_by_one
    loss_of = score(objective, params, batch, mesh)
    found = []
    for row, number, places in _documents(function, batch, numbers):
        weights = np.concatenate([batch["weights"][row, place] for place in places])
        if weights.sum() > 0:
            loss, worst = loss_of(row, places, tokenizer)
            tokens = np.concatenate([batch["tokens"][row, place] for place in places])
            text = tokenizer.decode(tokens.tolist())
            found.append(Document(int(numbers[row]), number, loss, int((weights > 0).sum()), text, worst))
    return sorted(found, key=lambda document: -np.nan_to_num(document.loss, nan=np.inf))


_LossOf = Callable[[int, list[slice], Tokenizer], tuple[float, list[tuple[str, float]]]]


def _documents(function: BatchFunction, batch: Batch, numbers: np.ndarray) -> Iterator[tuple[int, int, list[slice]]]:
    """Yields (row of the batch, which of its documents, where its tokens stand)."""
    for row, number in enumerate(numbers.tolist()):
        if isinstance(function.source, ExampleRows):
            # Two answers that are compared are one example.
            yield from ((row, i, places) for i, (_, places) in enumerate(function.source.places(number), 1))
            continue
        ids = batch["segment_ids"][row]
        for segment in range(1, int(ids.max()) + 1):
            there = np.flatnonzero(ids == segment)
            yield row, segment, [slice(int(there[0]), int(there[-1]) + 1)]


def _by_token(objective: Objective, params: Params, batch: Batch, mesh: Mesh) -> _LossOf:
    nll_BT = whole(jax.jit(objective.predict)(params, _put(batch, mesh)), mesh)

    def loss_of(row: int, places: list[slice], tokenizer: Tokenizer) -> tuple[float, list[tuple[str, float]]]:
        nll, weights, targets = (
            np.concatenate([x[row, place] for place in places]) for x in (nll_BT, batch["weights"], batch["targets"])
        )
        counted = np.where(weights > 0, nll, -np.inf)
        order = [i for i in np.argsort(-counted, kind="stable")[:_WORST_TOKENS].tolist() if weights[i] > 0]
        worst = [(tokenizer.decode([int(targets[i])], specials=True), float(nll[i])) for i in order]
        return float((nll * weights).sum(dtype=np.float64) / weights.sum(dtype=np.float64)), worst

    return loss_of


def _one_by_one(objective: Objective, params: Params, batch: Batch, mesh: Mesh) -> _LossOf:
    compiled = jax.jit(objective.loss)

    def loss_of(row: int, places: list[slice], _: Tokenizer) -> tuple[float, list[tuple[str, float]]]:
        alone = dict(batch)
        for name in ("weights", "segment_ids"):
            alone[name] = np.zeros_like(batch[name])
            for place in places:
                alone[name][row, place] = batch[name][row, place]
        sums = compiled(params, _put(alone, mesh))
        return float(whole(sums.nll, mesh)) / float(whole(sums.weight, mesh)), []

    return loss_of


def _put(batch: Batch, mesh: Mesh) -> dict[str, jax.Array]:
    places = local_places(mesh, len(batch["tokens"]))
    return put_batch(batch if places is None else {name: x[places] for name, x in batch.items()}, mesh)
