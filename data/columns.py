"""The values of a row as text: patterns with column names, nested columns, and one conversion for every task.

A value that is not text is never written as Python prints it: numbers are written as JSON writes them, the texts of a
list of parts are joined, null and NaN are missing, and anything else is an error that names the column.
"""

import dataclasses
import decimal
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeGuard

import numpy as np

from configs.errors import UserError
from data.cleaning import clean

Row = dict[str, object]

# An escaped brace, a column's name, or a brace that is neither.
_BRACES = re.compile(r"(\{\{|\}\}|\{[^{}]*\}|[{}])")
_LONGEST_SHOWN = 60
_EXPECTED_TEXT = (
    "expected text: fill it in, or set config.data.strict=False to skip such rows, or config.task.missing=empty to "
    "read it as an empty text"
)


class MissingValue(UserError):
    """A column that is read as text is null or NaN in a row.

    Attributes:
        found: what was found where, such as "'label' is null".
    """

    def __init__(self, found: str, expected: str = _EXPECTED_TEXT) -> None:
        self.found = found
        super().__init__(f"{found}; {expected}")


class MissingColumn(UserError):
    """A row does not have a column that is read.

    Attributes:
        name: of the column.
        found: the columns of the row.
    """

    def __init__(self, name: str, found: Iterable[str], option: str) -> None:
        self.name, self.found = name, ", ".join(map(str, found))
        super().__init__(f"no {name!r}; columns found: {self.found}; set {option}")


@dataclasses.dataclass(frozen=True)
class RowRules:
    """How rows become examples. A run keeps the rules that it was started with (`config.task.row_rules`).

    Attributes:
        missing: what null and NaN are in a column that is read as text: "error", or an "empty" text.
        clean: texts are cleaned like training text (`data.cleaning.clean`).
        first_version: the rules before texts were cleaned: a boolean is written as Python writes it, a class that a
            dataset stores as a number keeps its number, the group of a conversation is its first message, and splits
            ignore classes.
    """

    missing: Literal["error", "empty"] = "error"
    clean: bool = True
    first_version: bool = False

    @property
    def uncleaned(self) -> "RowRules":
        """These rules without cleaning, for texts that offsets refer to."""
        return dataclasses.replace(self, clean=False)


DEFAULT_RULES = RowRules()


def fill(pattern: str, row: Row, option: str, rules: RowRules = DEFAULT_RULES) -> str:
    """Returns `pattern` with each {column} replaced by the row's value as text.

    Args:
        pattern: text with column names in braces; see `column` for names. "{{" and "}}" are braces.
        row: the row.
        option: the config field that contains the pattern, for the error message.
        rules: see `text_of`.

    Raises:
        UserError: a column is missing (names those found), its value is not text, or all columns are empty, unless the
            rules make missing values empty.
    """
    parts = parse_pattern(pattern)
    filled = [text_of(column(row, text, option), repr(text), rules) if named else text for text, named in parts]
    values = [text for text, (_, named) in zip(filled, parts, strict=True) if named]
    if values and rules.missing == "error" and not "".join(values).strip():
        raise UserError(f"{', '.join(repr(name) for name, named in parts if named)} is empty; expected text")
    return "".join(filled)


def parse_pattern(pattern: str) -> list[tuple[str, bool]]:
    """Returns the parts of a pattern: (a column's name, True) or (other text, False).

    Raises:
        UserError: a brace is not closed or not opened, or has no name in it.
    """
    parts = []
    for piece in _BRACES.split(pattern):
        if piece in ("{{", "}}"):
            parts.append((piece[0], False))
        elif piece in ("{", "}"):
            raise UserError(f"a single {piece!r}; write {piece * 2} for a brace")
        elif piece.startswith("{"):
            if not piece[1:-1].strip():
                raise UserError("braces without a column's name in them; write {{ and }} for braces")
            parts.append((piece[1:-1], True))
        elif piece:
            parts.append((piece, False))
    return parts


def column(row: Row, name: str, option: str) -> Any:  # noqa: ANN401 - whatever the row holds
    """Returns a row's value in a column, which may be None.

    Args:
        row: the row.
        name: the column, or "meta.body" for the field "body" of a column "meta", or "turns.0" for the first item of a
            list. A column whose whole name is `name` comes first, so names may contain dots and any punctuation.
        option: the config field that contains the name, for the error message.

    Raises:
        MissingColumn: there is no such column (names those found).
    """
    found = find(row, name)
    if not found:
        raise MissingColumn(name, row, option)
    return found[0]


def find(value: object, name: str) -> tuple[Any, ...]:
    """Returns (value,) of a possibly nested column (see `column`), or () if there is none."""
    if isinstance(value, Mapping):
        if name in value:
            return (value[name],)
        dots = [place for place, character in enumerate(name) if character == "."]
        for dot in reversed(dots):
            if name[:dot] in value and (found := find(value[name[:dot]], name[dot + 1 :])):
                return found
        return ()
    if value is None:
        return (None,)
    first, _, rest = name.partition(".")
    if isinstance(value, list) and first.isdecimal() and int(first) < len(value):
        return find(value[int(first)], rest) if rest else (value[int(first)],)
    return ()


def is_missing(value: object) -> bool:
    """Returns whether a value is null or NaN. 0, False and "" are values."""
    return value is None or (isinstance(value, float | np.floating | decimal.Decimal) and math.isnan(value))


def is_empty(value: object, name: str, rules: RowRules) -> bool:
    """Returns whether the value of a column is missing and the rules make it empty.

    Raises:
        MissingValue: it is missing, and the rules make that an error.
    """
    return is_missing(value) and text_of(value, repr(name), rules) == ""


def text_of(value: object, name: str, rules: RowRules = DEFAULT_RULES) -> str:
    """Returns a value as text, cleaned: the one conversion of every column that is read as text or label.

    Args:
        value: text; a number or boolean, which is written as JSON writes it; or a list of parts
            {"type": "text", "text": ...}, whose texts are joined.
        name: what the value is called in an error, e.g. "'label'".
        rules: what a missing value is, and whether text is cleaned.

    Raises:
        MissingValue: null or NaN, unless the rules make it an empty text.
        UserError: anything else.
    """
    if isinstance(value, str):
        return clean(value) if rules.clean else value
    if is_missing(value):
        if rules.missing == "empty":
            return ""
        raise MissingValue(f"{name} is {'null' if value is None else 'NaN'}")
    if is_parts(value):
        return "".join(text_of(part["text"], f"the text of a part of {name}", rules) for part in value)
    number = _number_text(value, rules)
    if number is None:
        raise UserError(f"{name} is {described(value)}; expected text or a number")
    return number


def texts_of(value: object, name: str, rules: RowRules = DEFAULT_RULES) -> list[str]:
    """Returns the texts in a list of values, or of one value; see `text_of` for errors."""
    if isinstance(value, list) and not is_parts(value):
        return [text_of(item, f"value {number} of {name}", rules) for number, item in enumerate(value, 1)]
    return [text_of(value, name, rules)]


def answers_of(value: object, name: str, rules: RowRules = DEFAULT_RULES) -> list[str]:
    """Returns the texts in a column that holds one text, a list of texts, or SQuAD's answers in either layout.

    There are none in an empty list, or where the rules make a missing value empty.

    Raises:
        UserError: the column holds something else, or an empty text.
    """
    if is_empty(value, name, rules):
        return []
    answers = value["text"] if isinstance(value, Mapping) and "text" in value else value
    listed = answers if isinstance(answers, list) and not is_parts(answers) else [answers]
    items = [item["text"] if isinstance(item, Mapping) and "text" in item else item for item in listed]
    expected = "expected a text, a list of texts, or SQuAD's answers"
    if any(isinstance(item, Mapping | bytes) for item in items):
        raise UserError(f"{name!r} is {described(value)}; {expected}")
    texts = [text_of(item, repr(name), rules) for item in items]
    if any(not text.strip() for text in texts):
        raise UserError(f"{name!r} is {described(value)}, which has an empty text; {expected}")
    return texts


def is_parts(value: object) -> TypeGuard[list[Mapping[str, object]]]:
    """Returns whether a value is a list of parts {"type": "text", "text": ...}, as chat APIs write a content."""
    return isinstance(value, list) and bool(value) and all(map(_is_text_part, value))


def _is_text_part(part: object) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and "text" in part


def _number_text(value: object, rules: RowRules) -> str | None:
    """Returns a number or boolean as JSON writes it, or None if the value is neither or is infinite."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return str(value) if rules.first_version else json.dumps(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float | decimal.Decimal) and math.isfinite(value):
        return json.dumps(value) if isinstance(value, float) else str(value)
    return None


def described(value: object) -> str:
    """Returns the beginning of a value and, unless it is text, its kind, for an error message."""
    shown = repr(value)[:_LONGEST_SHOWN]
    if isinstance(value, str):
        return shown
    if isinstance(value, Mapping):
        kind = "an object"
    elif isinstance(value, list | tuple):
        kind = "a list"
    elif isinstance(value, bytes):
        kind = "bytes"
    else:
        kind = f"of type {type(value).__name__}"
    return f"{kind}: {shown}"
