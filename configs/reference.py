"""The reference of config fields: names, defaults and meanings, read from the comments of `configs/default.py`.

A field's meaning is the comment at the end of its line, or the comment lines directly above it.
"""

import ast
import functools
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from configs import default


class Field(NamedTuple):
    """One config field.

    Attributes:
        section: "model", "mesh", ...; empty for the fields outside of sections.
        name: how a user types it without "config.", e.g. "model.embed_dim".
        default: its default value.
        meaning: its comment in `configs/default.py`.
    """

    section: str
    name: str
    default: object
    meaning: str


@functools.cache
def fields() -> tuple[Field, ...]:
    """Returns all config fields in the order of `configs/default.py`."""
    source = Path(default.__file__).read_text(encoding="utf-8")
    comments, own_line = _comments(source)
    return tuple(field for function in _functions(source) for field in _fields_of(function, comments, own_line))


@functools.cache
def titles() -> dict[str, str]:
    """Returns {section: what it is about}, taken from the docstrings of `configs/default.py`."""
    source = Path(default.__file__).read_text(encoding="utf-8")
    texts = {
        function.name: (ast.get_docstring(function) or "").partition("\n")[0]
        for function in _functions(source)
        if "_" not in function.name
    }
    return {section: text.partition(": ")[2].rstrip(".") for section, text in texts.items()} | {
        "": "fields outside of sections"
    }


def _functions(source: str) -> list[ast.FunctionDef]:
    return [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]


def _section(function: ast.FunctionDef) -> str:
    """Returns the section whose fields a function sets: `model` and `model_experts` set those of "model"."""
    return "" if function.name == "get_config" else function.name.partition("_")[0]


def _comments(source: str) -> tuple[dict[int, str], set[int]]:
    """Returns {line: its comment}, and the lines that contain nothing but a comment."""
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT]
    own_line = {token.start[0] for token in tokens if token.line.lstrip().startswith("#")}
    return {token.start[0]: token.string.lstrip("# ") for token in tokens}, own_line


def _fields_of(function: ast.FunctionDef, comments: dict[int, str], own_line: set[int]) -> Iterator[Field]:
    section = _section(function)
    for node in function.body:
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Attribute):
            continue
        if isinstance(node.value, ast.Call):
            continue  # a section of its own
        first = node.lineno
        while first - 1 in own_line:
            first -= 1
        meaning = " ".join(comments[line] for line in range(first, (node.end_lineno or 0) + 1) if line in comments)
        name = node.targets[0].attr
        yield Field(section, f"{section}.{name}" if section else name, ast.literal_eval(node.value), meaning)
