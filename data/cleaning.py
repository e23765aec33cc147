"""The one cleaning of text: training text, labeled rows, prompts, chat turns and evaluated text all pass through it."""

import re

# Unicode category Cc except line feed and tab, lone surrogates, which UTF-8 cannot encode, and byte order marks.
_REMOVED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufeff]")


def clean(text: str) -> str:
    """Returns the text with every line end as a line feed, and without control characters and byte order marks.

    Line feeds and tabs stay. The cleaned beginning of a text is the beginning of the cleaned text, unless it is cut
    between a carriage return and its line feed.
    """
    return _REMOVED.sub("", _with_line_feeds(text))


def clean_document(text: str) -> str:
    """Returns a document as it is tokenized for pre-training: cleaned, and without white space at its end."""
    return clean(text).rstrip()


def has_control_characters(text: str) -> bool:
    """Returns whether `clean` removes a character, other than the carriage return of a line end."""
    return _REMOVED.search(_with_line_feeds(text)) is not None


def _with_line_feeds(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")
