"""The flags of `prepare` that remove or change documents."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from absl import flags

from configs.errors import UserError, did_you_mean
from data.filters.c4 import C4
from data.filters.chain import AVOID_ACTIONS, FilterOptions
from data.filters.fineweb import FineWeb
from data.filters.gopher import GopherQuality, GopherRepetition
from data.filters.masks import MASKS

if TYPE_CHECKING:
    from data.filters.chain import Score

_RULES: dict[str, Any] = {
    "gopher_quality": GopherQuality,
    "gopher_repetition": GopherRepetition,
    "c4": C4,
    "fineweb": FineWeb,
}
# What each of these flags changes.
FLAG_NEEDS = {
    "min_language_score": "languages",
    "avoid_action": "avoid",
    "min_score": "score_with",
    "score_class": "score_with",
}


def define_filter_flags(values: flags.FlagValues) -> None:
    """Adds the flags; without them no document is removed but blank ones and exact copies."""
    text = "Remove documents by Gopher's rules about words, symbols and lines."
    flags.DEFINE_boolean("gopher_quality", False, text, flag_values=values)
    text = "Remove documents by Gopher's rules about repeated lines, paragraphs and n-grams."
    flags.DEFINE_boolean("gopher_repetition", False, text, flag_values=values)
    flags.DEFINE_boolean("c4", False, "Remove lines and documents by C4's rules.", flag_values=values)
    flags.DEFINE_boolean("fineweb", False, "Remove documents by FineWeb's rules about lines.", flag_values=values)
    text = "Other thresholds: RULES.FIELD=VALUE, e.g. gopher_quality.min_words=20,c4.min_sentences=3."
    flags.DEFINE_list("thresholds", [], text, flag_values=values)
    flags.DEFINE_list(
        "languages", [], "Keep documents of these languages, e.g. en,de (extra: data).", flag_values=values
    )
    text = "Smallest probability of the language."
    flags.DEFINE_float("min_language_score", 0.65, text, flag_values=values)
    flags.DEFINE_list("mask", [], f"Replace {', '.join(MASKS)} by <KEY>, <EMAIL>, <IP>.", flag_values=values)
    text = (
        "Remove documents that share 13 words with evaluation rows: FILES, NAME=FILES or a task of configs/evals=FILES."
    )
    flags.DEFINE_list("avoid", [], text, flag_values=values)
    text = "Remove these documents, or only count the rows that are found."
    flags.DEFINE_enum("avoid_action", "drop", list(AVOID_ACTIONS), text, flag_values=values)
    text = "Remove near-duplicates: smallest Jaccard similarity of two documents, e.g. 0.8; 0: keep them."
    flags.DEFINE_float("near_duplicates", 0.0, text, flag_values=values)
    text = "Remove documents that a fine-tuned run scores low: a classifier (--score_class) or a regression."
    flags.DEFINE_string("score_with", "", text, flag_values=values)
    flags.DEFINE_string("score_class", "", "The class whose probability is the score.", flag_values=values)
    flags.DEFINE_float("min_score", 0.5, "Smallest score.", flag_values=values)


def filter_options(values: flags.FlagValues) -> FilterOptions:
    """Returns the options of the flags.

    Raises:
        UserError: a threshold is unknown, of rules that are off, or not of its type.
    """
    limits = _thresholds(values)
    return FilterOptions(
        **{name: rules(**limits[name]) for name, rules in _RULES.items() if values[name].value},
        languages=tuple(values.languages),
        min_language_score=values.min_language_score,
        mask=tuple(values.mask),
        avoid=tuple(values.avoid),
        avoid_action=values.avoid_action,
        score_with=values.score_with,
        score_class=values.score_class,
        min_score=values.min_score,
    )


def _thresholds(values: flags.FlagValues) -> Mapping[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {name: {} for name in _RULES}
    for text in values.thresholds:
        name, _, value = text.partition("=")
        rules, _, field = name.partition(".")
        numbers = {
            f"{rule}.{one.name}": type(one.default)
            for rule, kind in _RULES.items()
            for one in dataclasses.fields(kind)
            if isinstance(one.default, int | float)
        }
        if name not in numbers:
            hint = did_you_mean(name, list(numbers))
            raise UserError(f"--thresholds={text}: {name!r} is unknown{hint}; expected one of {', '.join(numbers)}")
        if not values[rules].value:
            raise UserError(f"--thresholds={text} has no effect without --{rules}")
        try:
            found[rules][field] = numbers[name](value)
        except ValueError:
            raise UserError(f"--thresholds={text}; expected a number, got {value!r}") from None
    return found


def score_function(values: flags.FlagValues) -> "Score | None":
    """Returns the function that scores documents, None without --score_with.

    Raises:
        UserError: the run cannot score documents.
    """
    if not values.score_with:
        return None
    from train.prediction.document_scores import document_scorer

    return document_scorer(values.score_with, values.score_class)
