"""The filters of a store, in one order: language, Gopher, C4, FineWeb, contamination, a classifier's score, masks."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from configs.errors import UserError
from data.filters.c4 import C4, c4
from data.filters.contamination import ContaminationIndex
from data.filters.fineweb import FineWeb, fineweb
from data.filters.gopher import GopherQuality, GopherRepetition, gopher_quality, gopher_repetition
from data.filters.language import check_languages, identify_language
from data.filters.masks import mask
from data.filters.words import Words, count_words

# Texts -> a number for each, higher is better.


class Score(Protocol):
    """A model that scores documents; picklable."""

    @property
    def fingerprint(self) -> str:
        """Identifies the model."""

    def __call__(self, texts: Sequence[str]) -> Sequence[float]:
        """Returns the score of each text; NaN: it has none."""


AVOID_ACTIONS = ("drop", "count")


@dataclasses.dataclass(frozen=True)
class FilterOptions:
    """Which filters are used; all are off by default. Recorded in the manifest of a store.

    Attributes:
        gopher_quality: thresholds of Gopher's quality rules; None: off.
        gopher_repetition: thresholds of Gopher's repetition rules; None: off.
        c4: thresholds of C4's rules; None: off.
        fineweb: thresholds of FineWeb's rules; None: off.
        languages: codes of the languages that stay; empty: all.
        min_language_score: smallest probability of the language.
        mask: kinds of `masks.MASKS` to replace.
        avoid: evaluation rows to look for, see `evaluation_sets.read_evaluation_sets`.
        avoid_action: "drop" removes documents that contain evaluation rows, "count" only counts them.
        score_with: the run whose score decides; "": none.
        score_class: the class whose probability is the score; "" for a regression.
        min_score: smallest score.
    """

    gopher_quality: GopherQuality | None = None
    gopher_repetition: GopherRepetition | None = None
    c4: C4 | None = None
    fineweb: FineWeb | None = None
    languages: tuple[str, ...] = ()
    min_language_score: float = 0.65
    mask: tuple[str, ...] = ()
    avoid: tuple[str, ...] = ()
    avoid_action: str = "drop"
    score_with: str = ""
    score_class: str = ""
    min_score: float = 0.5

    def __bool__(self) -> bool:
        """Whether any filter is on."""
        rules = (self.gopher_quality, self.gopher_repetition, self.c4, self.fineweb)
        return bool(any(rules) or self.languages or self.mask or self.avoid or self.score_with)


@dataclasses.dataclass
class Document:
    """A document on its way through the filters.

    Attributes:
        text: what remains of it.
        removed: the rule that removed it, or "".
        changes: number of changes by kind: masked e-mail addresses and the like.
        language: code of its language; "" if it was not identified.
        rows: int64, numbers of the evaluation rows that are found in it.
    """

    text: str
    removed: str = ""
    changes: Counter[str] = dataclasses.field(default_factory=Counter)
    language: str = ""
    rows: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    _words: Words | None = None

    @property
    def words(self) -> Words:
        """The words of the text, counted once for all rules."""
        if self._words is None or self._words.text != self.text:
            self._words = count_words(self.text)
        return self._words


# Returns the rule that removes a document, or None; may change the document.
Filter = Callable[[Document], str | None]


def check_options(options: FilterOptions) -> None:
    """Checks the options before any document is read.

    Raises:
        UserError: a language, a mask or an action is unknown, or a threshold is not a fraction.
    """
    mask("", options.mask)
    if options.languages:
        check_languages(options.languages)
    if options.avoid_action not in AVOID_ACTIONS:
        raise UserError(f"avoid_action={options.avoid_action!r}; expected {' or '.join(AVOID_ACTIONS)}")
    if not 0 <= options.min_language_score <= 1:
        raise UserError(f"min_language_score={options.min_language_score}; expected a probability from 0 to 1")


def filter_documents(
    texts: Sequence[str], options: FilterOptions, index: ContaminationIndex | None = None, score: Score | None = None
) -> list[Document]:
    """Returns what the filters make of each document; a document's result does not depend on the others.

    Args:
        texts: cleaned documents.
        options: which filters to use.
        index: evaluation rows to look for.
        score: scores documents; needed for `options.score_with`.
    """
    documents = [Document(text) for text in texts]
    _apply(documents, _filters(options, index))
    if score is not None:
        left = [document for document in documents if not document.removed]
        for document, value in zip(left, score([document.text for document in left]), strict=True):
            # A score that is not a number passes no threshold.
            document.removed = "" if value >= options.min_score else "score: low"
    if options.mask:
        _apply(documents, [functools.partial(_mask, kinds=options.mask)])
    return documents


def _apply(documents: Sequence[Document], filters: Sequence[Filter]) -> None:
    for document in documents:
        for step in filters:
            if document.removed:
                break
            document.removed = step(document) or ""


def _filters(options: FilterOptions, index: ContaminationIndex | None) -> list[Filter]:
    """Returns the filters that are on, in their order."""
    filters: list[Filter] = []
    if options.languages:
        filters.append(functools.partial(_language, options=options))
    for rule, limits in ((gopher_repetition, options.gopher_repetition), (gopher_quality, options.gopher_quality)):
        if limits:
            filters.append(functools.partial(_rule, rule, limits))
    if options.c4:
        filters.append(functools.partial(_lines, limits=options.c4))
    if options.fineweb:
        filters.append(functools.partial(_rule, fineweb, options.fineweb))
    if index:
        filters.append(functools.partial(_contamination, index=index, drops=options.avoid_action == "drop"))
    return filters


def _rule(rule: Callable[[Words, Any], str | None], limits: object, document: Document) -> str | None:
    return rule(document.words, limits)


def _language(document: Document, options: FilterOptions) -> str | None:
    document.language, probability = identify_language(document.text)
    if document.language not in options.languages:
        return "language: another"
    return "language: uncertain" if probability < options.min_language_score else None


def _lines(document: Document, limits: C4) -> str | None:
    kept, reason, changes = c4(document.text, limits)
    if not reason:
        document.text = kept
        document.changes += changes
    return reason


def _contamination(document: Document, index: ContaminationIndex, drops: bool) -> str | None:
    document.rows = index.find(document.text)
    return f"contamination: {index.names[index.set_of[document.rows[0]]]}" if drops and len(document.rows) else None


def _mask(document: Document, kinds: Sequence[str]) -> None:
    document.text, counts = mask(document.text, kinds)
    document.changes += Counter({f"masked {kind}": count for kind, count in counts.items()})
