"""The loss of each document in a batch and, for a language model, its tokens with the highest loss."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from data.examples import ExampleRows
from data.loader import Batch, BatchFunction
from data.mixed_rows import MixedRows
from data.packing import PackedRows
from data.tokenizer import Tokenizer
from model.heads import Objective
from model.transformer import Params
from train.distributed.placement import local_places, put_batch, row_parts, to_host

_WORST_TOKENS = 3


class Document(NamedTuple):
    """The loss of a document, or of an example, in a batch.

    Attributes:
        row: index of its row, of a mixture in its source.
        number: index of the document in its token store, or of the example among the training examples.
        source: readable description of where it is.
        loss: mean over its targets: nats for a language model, else the units of the head's loss.
        targets: number of targets.
        text: its tokens as text.
        worst: (token, loss) of a language model's targets with the highest loss, highest first.
    """

    row: int
    number: int
    source: str
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
    source_of: Callable[[str, int], str],
    mesh: Mesh,
    by_token: bool,
    rows_at_once: int,
) -> list[Document]:
    """Returns the documents of batch t that have targets, highest loss first; all processes of a mesh must call it.

    Args:
        objective: the model with its head.
        params: all of its parameters.
        function: returns the global batch (`places` None).
        t: the step, counted from 0.
        tokenizer: of the rows.
        source_of: (name of the row's source in a mixture, `Document.number`) -> `Document.source`.
        mesh: the devices it runs on.
        by_token: `objective.predict` returns the loss of each target; else each document is evaluated alone.
        rows_at_once: rows evaluated together if `by_token`; must divide the batch size.
    """
    batch, numbers, shown = function(t), function.row_numbers(t), function.places(t)
    sources = shown.get("sources", [""] * len(numbers))
    if by_token:
        loss_of = _by_token(objective, params, batch, mesh, rows_at_once)
    else:
        loss_of = _one_by_one(objective, params, batch, mesh)
    found = []
    for row, number, places in _documents(function, batch, numbers):
        weights = np.concatenate([batch["weights"][row, place] for place in places])
        if weights.sum() > 0:
            loss, worst = loss_of(row, places, tokenizer)
            tokens = np.concatenate([batch["tokens"][row, place] for place in places])
            text = tokenizer.decode(tokens.tolist())
            targets = int((weights > 0).sum())
            found.append(
                Document(shown["rows"][row], number, source_of(sources[row], number), loss, targets, text, worst)
            )
    return sorted(found, key=lambda document: -np.nan_to_num(document.loss, nan=np.inf))


_LossOf = Callable[[int, list[slice], Tokenizer], tuple[float, list[tuple[str, float]]]]


def _documents(function: BatchFunction, batch: Batch, numbers: np.ndarray) -> Iterator[tuple[int, int, list[slice]]]:
    """Yields (row of the batch, number of the document, slices of its tokens)."""
    source = function.source
    for row, number in enumerate(numbers.tolist()):
        if isinstance(source, ExampleRows):
            # A pair of answers is one example.
            yield from ((row, example, places) for example, places in source.segment_slices(number))
            continue
        assert isinstance(source, PackedRows | MixedRows)
        first = source.first_document(number)
        ids = batch["segment_ids"][row]
        for segment in range(1, int(ids.max()) + 1):
            there = np.flatnonzero(ids == segment)
            yield row, first + segment - 1, [slice(int(there[0]), int(there[-1]) + 1)]


def _by_token(objective: Objective, params: Params, batch: Batch, mesh: Mesh, rows_at_once: int) -> _LossOf:
    compiled = jax.jit(objective.predict)
    firsts = range(0, len(batch["tokens"]), rows_at_once)
    parts = ({name: x[first : first + rows_at_once] for name, x in batch.items()} for first in firsts)
    nll_BT = np.concatenate([to_host(compiled(params, _put(part, mesh)), mesh) for part in parts])

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
        # Identical rows, as few as the mesh allows.
        alone = {name: np.repeat(x[row : row + 1], row_parts(mesh), axis=0) for name, x in batch.items()}
        for name in ("weights", "segment_ids"):
            alone[name][:] = 0
            for place in places:
                alone[name][:, place] = batch[name][row, place]
        sums = compiled(params, _put(alone, mesh))
        return float(to_host(sums.nll, mesh)) / float(to_host(sums.weight, mesh)), []

    return loss_of


def _put(batch: Batch, mesh: Mesh) -> dict[str, jax.Array]:
    places = local_places(mesh, len(batch["tokens"]))
    return put_batch(batch if places is None else {name: x[places] for name, x in batch.items()}, mesh)
