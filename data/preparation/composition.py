"""What a store is made of: documents, bytes and tokens of each source, and how long documents are."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from data.preparation.unit_files import UnitFiles

# The field of what `make_store` returns that belongs to the data card, not to the manifest.
COMPOSITION = "composition"
_KINDS = ("documents", "bytes", "tokens")
NOTHING = dict.fromkeys(_KINDS, 0)  # the counts of a source of which nothing is left


class Composition:
    """Counts by source, and by length: documents of 2^(n - 1) to 2^n - 1 tokens by n."""

    def __init__(self) -> None:
        self.sources: dict[str, Counter[str]] = {}
        self.lengths: Counter[int] = Counter()
        self._rows: set[int] = set()  # of the unit: one that is split by its tail is in both splits

    def add(self, unit: UnitFiles, rows: Sequence[int], sizes: np.ndarray, tokens: np.ndarray) -> None:
        """Adds documents of a unit, or parts of them, with their bytes of text and their numbers of tokens."""
        names = unit.results()["sources"]
        pieces = unit.array("pieces")[list(rows)]
        new = np.array([row not in self._rows for row in rows], bool)
        self._rows.update(rows)
        for piece, name in enumerate(names):
            own = pieces == piece
            counts = (int(np.count_nonzero(own & new)), int(sizes[own].sum()), int(tokens[own].sum()))
            if own.any():
                self.sources.setdefault(name, Counter()).update(dict(zip(_KINDS, counts, strict=True)))
        self.lengths.update(length.bit_length() for length in tokens.tolist())

    def to_json(self) -> dict[str, Any]:
        """Returns {"sources": {name: {"documents", "bytes", "tokens"}}, "lengths": {n: documents}}."""
        sources = {name: dict(self.sources[name]) for name in sorted(self.sources)}
        return {"sources": sources, "lengths": {str(n): self.lengths[n] for n in sorted(self.lengths)}}

    @staticmethod
    def of(marks: Iterable[dict[str, Any]]) -> "Composition":
        """Returns the composition of all units, from the marks of stage 3."""
        whole = Composition()
        for mark in marks:
            for name, counts in mark["composition"]["sources"].items():
                whole.sources.setdefault(name, Counter()).update(counts)
            whole.lengths.update({int(n): count for n, count in mark["composition"]["lengths"].items()})
        return whole
