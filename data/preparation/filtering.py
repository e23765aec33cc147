"""The filters of a store as functions of the stages, and what they record in its manifest."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from data.filters.chain import FilterOptions, Score, check_options, filter_documents
from data.filters.contamination import ContaminationIndex, build_index, report
from data.filters.evaluation_sets import read_evaluation_sets
from data.filters.masks import mask
from data.near_duplicates import bands_for
from data.preparation.composition import COMPOSITION
from data.preparation.reading import Outcome, ReadOptions
from data.preparation.similar_documents import NearDuplicatePass, band_feature

_LANGUAGE, _ROW, _SET = "language ", "row ", "rows of "


@dataclasses.dataclass(frozen=True)
class FilterFunction:
    """Applies filters to documents in stage 1; see `data.filters.chain`.

    Attributes:
        options: which filters.
        index: evaluation rows to look for.
        score: scores documents.
    """

    options: FilterOptions
    index: ContaminationIndex | None = None
    score: Score | None = None

    def __call__(self, texts: Sequence[str]) -> list[Outcome]:
        """Returns what becomes of each document."""
        outcomes = []
        found = filter_documents(texts, self.options, self.index, self.score)
        for text, document in zip(texts, found, strict=True):
            notes = [f"{_LANGUAGE}{document.language}"] if document.language else []
            notes += [f"{_ROW}{number}" for number in document.rows.tolist()]
            if self.index is not None and len(document.rows):
                notes += [f"{_SET}{number}" for number in np.unique(self.index.set_of[document.rows]).tolist()]
            reasons = (document.removed,) if document.removed else tuple(document.changes.elements())
            # Samples are published with the card, so what is masked in the store is masked there too.
            sample = mask(text, self.options.mask)[0] if reasons and self.options.mask else ""
            outcomes.append(Outcome("" if document.removed else document.text, reasons, tuple(notes), sample))
        return outcomes


@dataclasses.dataclass(frozen=True)
class Filters:
    """The filters of a store.

    Attributes:
        options: the rules.
        near_duplicates: smallest Jaccard similarity of near-duplicates; 0: off.
        index: the evaluation rows that the options name.
        score: the function that scores documents, if the options name a run.
    """

    options: FilterOptions
    near_duplicates: float
    index: ContaminationIndex | None
    score: Score | None

    def read_options(self, options: ReadOptions) -> ReadOptions:
        """Returns the options of stage 1 with these filters."""
        functions = (FilterFunction(self.options, self.index, self.score),) if self.options else ()
        features = (band_feature(self.near_duplicates),) if self.near_duplicates else ()
        return dataclasses.replace(options, functions=functions, features=features)

    def deletions(self) -> tuple[NearDuplicatePass, ...]:
        """Returns the passes of stage 2."""
        return (NearDuplicatePass(self.near_duplicates),) if self.near_duplicates else ()

    def recorded(self) -> dict[str, Any]:
        """Returns the options that are on, as they are recorded in a manifest; a store without filters records none."""
        values = {name: value for name, value in dataclasses.asdict(self.options).items() if value}
        needs = {"min_language_score": "languages", "avoid_action": "avoid", "min_score": "score_with"}
        found: dict[str, Any] = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if name not in needs or needs[name] in values
        }
        for name in ("gopher_quality", "gopher_repetition", "c4", "fineweb"):
            if name in found:
                found[name] = {key: _listed(value) for key, value in found[name].items()}
        if self.index is not None:
            # A file that was moved is the same set; a changed one is another.
            found["avoid"] = {"names": list(self.index.names), "sha256": self.index.fingerprint}
        if self.score is not None:
            # So is a run: one that was moved is the same, one that was trained again is another.
            found["score_with"] = {"class": found.pop("score_class", ""), "sha256": self.score.fingerprint}
        filters = {"filters": found} if found else {}
        return filters | ({"near_duplicates": self.near_duplicates} if self.near_duplicates else {})

    def take_card_fields(self, made: dict[str, Any]) -> dict[str, Any]:
        """Takes from what `make_store` returned what belongs to the card, and counts languages and evaluation rows.

        Returns:
            {"sources", "lengths", "samples"}; "filtered" of `made` gets "languages" and "contamination" for its notes.
        """
        filtered = made.get("filtered", {})
        about = made.pop(COMPOSITION) | {"samples": filtered.pop("samples", {})}
        notes = Counter(filtered.pop("notes", {}))
        languages = {name.removeprefix(_LANGUAGE): n for name, n in notes.items() if name.startswith(_LANGUAGE)}
        if languages:
            filtered["languages"] = dict(sorted(languages.items(), key=lambda item: (-item[1], item[0])))
        if self.index is not None:
            rows = np.array([int(name.removeprefix(_ROW)) for name in notes if name.startswith(_ROW)], np.int64)
            documents = [notes[f"{_SET}{number}"] for number in range(len(self.index.names))]
            made.setdefault("filtered", filtered)["contamination"] = report(self.index, rows, documents)
        return about


def _listed(value: object) -> object:
    """Returns a value as JSON has it."""
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value


def make_filters(options: FilterOptions, near_duplicates: float, score: Score | None) -> Filters:
    """Returns filters, after reading the evaluation rows that they need.

    Raises:
        UserError: an option is invalid, or evaluation rows cannot be read.
    """
    check_options(options)
    if near_duplicates:
        bands_for(near_duplicates)
    index = build_index(read_evaluation_sets(options.avoid)) if options.avoid else None
    return Filters(options, near_duplicates, index, score if options.score_with else None)
