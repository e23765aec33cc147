"""Hugging Face weights <-> our parameters: the rows of a table, each read for import and for export.

A row maps one of our leaves, stacked over the layers, to the Hugging Face tensors ("theirs") that it consists of. The
matrices of experts are stacked over the layers and the experts; they are one tensor each, or one per layer.
L layers, E experts, D embed, N heads, K kv heads, H head dim, F mlp, V vocabulary.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from configs.errors import UserError

Shape = tuple[int, ...]
# Buffers in older files that are not weights; they follow from the config.
IGNORED = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias")


@dataclasses.dataclass(frozen=True)
class Part:
    """The outputs of a fused tensor that belong to one leaf: columns `start` to `stop` of each group.

    Attributes:
        start: first column within a group.
        stop: column after the last one.
        size: columns of a group.
        groups: number of groups, which follow each other.
    """

    start: int
    stop: int
    size: int
    groups: int = 1


@dataclasses.dataclass(frozen=True)
class Row:
    """One of our leaves and the tensors that it consists of.

    Attributes:
        leaf: our path, without the group, e.g. "layers/attention/query/kernel".
        key: their tensor name; {i} is the layer and {e} the expert.
        inputs: number of leading axes of the kernel (after L and E) that are inputs; 0: not a kernel, the tensor is the
            flattened leaf.
        transposed: their tensor is (outputs, inputs), as in a Linear; False: (inputs, outputs), as in GPT-2's Conv1D.
        part: this leaf's part of the outputs, where several leaves share a tensor.
        interleaved: the two columns that a rotary position turns are neighbors in their tensor; ours are H/2 apart.
        layers: the layers that have the leaf, where not all of them do.
        experts: E of a leaf with a matrix per expert; 0: it has none.
    """

    leaf: str
    key: str
    inputs: int = 0
    transposed: bool = True
    part: Part | None = None
    interleaved: bool = False
    layers: tuple[int, ...] = ()
    experts: int = 0

    @property
    def stacked(self) -> bool:
        """Whether the leaf is stacked over layers."""
        return "{i}" in self.key

    @property
    def last(self) -> bool:
        """Whether this row completes its tensor."""
        return self.part is None or self.part.stop == self.part.size

    @property
    def _is_table(self) -> bool:
        return self.leaf.endswith(("table", "positions"))

    @property
    def _per_expert(self) -> bool:
        return "{e}" in self.key

    @property
    def _batch(self) -> int:
        """The number of leading axes that their tensor has too: 1 if it contains the matrices of all experts."""
        return int(self.experts > 0 and not self._per_expert)

    def keys(self, num_layers: int) -> list[str]:
        """Returns the names of their tensors, in the order of `pieces`, in a model of this many layers."""
        if not self.stacked:
            return [self.key]
        experts = range(self.experts) if self._per_expert else (0,)
        return [self.key.format(i=i, e=e) for i in self.layers or range(num_layers) for e in experts]

    def pieces(self, leaf: np.ndarray) -> np.ndarray:
        """Returns our leaf with a leading axis over their tensors; a view if the leaf is contiguous."""
        return leaf.reshape(-1, *self.piece_shape(leaf.shape))

    def piece_shape(self, shape: Shape) -> Shape:
        """Returns the shape of the piece of a leaf of this shape that is in one of their tensors."""
        return shape[self.stacked + self._per_expert :]

    def to_ours(self, theirs: np.ndarray, shape: Shape) -> np.ndarray:
        """Returns one piece of our leaf, in this shape, from their tensor."""
        outputs_last = theirs.swapaxes(-1, -2) if self.inputs and self.transposed else theirs
        if self.part is not None:
            outputs_last = self._grouped(outputs_last)[..., self.part.start : self.part.stop]
        ours = outputs_last.reshape(shape)
        if self.interleaved:
            ours = ours.reshape(*shape[:-1], shape[-1] // 2, 2).swapaxes(-1, -2).reshape(shape)
        return ours

    def to_theirs(self, ours: np.ndarray, begun: np.ndarray | None = None) -> np.ndarray:
        """Returns their tensor from one piece of our leaf.

        Args:
            ours: the leaf's piece.
            begun: their tensor as the other rows with this key have filled it so far; None: this is the first.
        """
        shape = ours.shape
        if self.interleaved:
            ours = ours.reshape(*shape[:-1], 2, shape[-1] // 2).swapaxes(-1, -2).reshape(shape)
        if self._is_table:
            return ours
        batch, rest = shape[: self._batch], shape[self._batch :]
        flat = ours.reshape(*batch, math.prod(rest[: self.inputs]), -1) if self.inputs else ours.reshape(-1)
        if self.part is not None:
            whole = np.empty((*flat.shape[:-1], self.part.groups * self.part.size), flat.dtype)
            if begun is not None:
                whole[...] = begun.swapaxes(-1, -2) if self.inputs and self.transposed else begun
            piece = flat.reshape(*flat.shape[:-1], self.part.groups, -1)
            self._grouped(whole)[..., self.part.start : self.part.stop] = piece
            flat = whole
        return flat.swapaxes(-1, -2) if self.inputs and self.transposed else flat

    def their_shape(self, shape: Shape) -> Shape:
        """Returns the shape of their tensor, from the shape of one piece of our leaf."""
        if self._is_table:
            return shape
        batch, shape = shape[: self._batch], shape[self._batch :]
        inputs, outputs = math.prod(shape[: self.inputs]), math.prod(shape[self.inputs :])
        if self.part is not None:
            outputs = self.part.groups * self.part.size
        if not self.inputs:
            return (outputs,)
        return (*batch, outputs, inputs) if self.transposed else (*batch, inputs, outputs)

    def _grouped(self, outputs_last: np.ndarray) -> np.ndarray:
        """Returns a view of their tensor with the outputs split into groups."""
        assert self.part is not None
        return outputs_last.reshape(*outputs_last.shape[:-1], self.part.groups, self.part.size)


def group_of(row: Row) -> str:
    """Returns the parameter group of a row: "head" for the output table, else "backbone"."""
    return "head" if row.leaf == "table" else "backbone"


def leaves(params: Mapping[str, Any], rows: list[Row]) -> Iterator[tuple[Row, Any]]:
    """Yields each row with its leaf (an array or a shape)."""
    for row in rows:
        leaf: Any = params[group_of(row)]
        for name in row.leaf.split("/"):
            leaf = leaf[name]
        yield row, leaf


def expected_shapes(params: Mapping[str, Any], rows: list[Row]) -> dict[str, Shape]:
    """Returns {tensor name: shape} of the files of a model with these (abstract) parameters."""
    shapes: dict[str, Shape] = {}
    for row, leaf in leaves(params, rows):
        shapes |= dict.fromkeys(row.keys(leaf.shape[0]), row.their_shape(row.piece_shape(leaf.shape)))
    return shapes


def compare_shapes(found: Mapping[str, Shape], expected: Mapping[str, Shape], where: str) -> None:
    """Raises UserError listing tensors that are missing, unexpected or of a different shape."""
    errors = [f"missing: {name}" for name in expected if name not in found]
    errors += [f"unexpected: {name}" for name in found if name not in expected]
    errors += [
        f"{name} has shape {list(found[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    if errors:
        shown = "; ".join(errors[:8]) + (f"; and {len(errors) - 8} more" if len(errors) > 8 else "")
        raise UserError(f"{where} does not contain the weights that its config.json describes: {shown}")
