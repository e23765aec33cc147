"""Builds frozen dataclasses from config sections; checks names, types and ranges, and reports all errors at once.

A field's type, its range and whether it may change when a run resumes are declared together:

    batch_size: Annotated[int, at_least(1)]
    every: Annotated[int, at_least(1), RESUMABLE]
"""

import dataclasses
import math
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar

from configs.errors import UserError, did_you_mean

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that a field may have, bounds included."""

    low: float
    high: float = math.inf

    def __str__(self) -> str:
        low, high = (f"{bound}" if isinstance(bound, int) else f"{bound:g}" for bound in (self.low, self.high))
        return f"at least {low}" if self.high == math.inf else f"between {low} and {high}"


@dataclasses.dataclass(frozen=True)
class Resumable:
    """Marks a field that may change when a run resumes; on a section, marks all of its fields."""


RESUMABLE = Resumable()


def at_least(low: float) -> Range:
    """Returns the range without an upper bound."""
    return Range(low)


def between(low: float, high: float) -> Range:
    """Returns the range from `low` to `high`, both included."""
    return Range(low, high)


def build(cls: type[T], values: Mapping[str, Any], path: str) -> T:
    """Returns `cls(**values)` after checking names, types and ranges; `path` prefixes field names in messages.

    Args:
        cls: a dataclass whose field types are int, float, bool, str, `Literal[...]`, `dict[str, X]`, `tuple[X, ...]` or
            a `NamedTuple` of these, or one of these in `Annotated` with a `Range`.
        values: one section of the config, e.g. `config.model`.
        path: what a user types to reach the section, e.g. "config.model".

    Raises:
        UserError: unknown, missing, mistyped or out-of-range fields, all of them in one message.
    """
    errors = find_errors(cls, values, path)
    if errors:
        raise UserError("; ".join(errors))
    types = typing.get_type_hints(cls)
    return cls(**{name: _converted(value, types[name]) for name, value in values.items()})


def find_errors(cls: type, values: Mapping[str, Any], path: str) -> list[str]:
    """Returns one message per field of `values` that `build` would reject."""
    types = typing.get_type_hints(cls, include_extras=True)
    errors = [f"{path}.{name} is unknown{did_you_mean(name, types)}" for name in values if name not in types]
    for field in dataclasses.fields(cls):
        if field.name in values:
            errors += _field_errors(f"{path}.{field.name}", values[field.name], types[field.name])
        elif field.default is dataclasses.MISSING:
            errors.append(f"{path}.{field.name} is missing")
    return errors


def resumable_fields(cls: type, prefix: str = "") -> Iterator[str]:
    """Yields the names of the fields that may change when a run resumes, e.g. "mesh.fsdp"."""
    for name, (kind, metadata) in annotations(cls).items():
        everything = RESUMABLE in metadata
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            nested = annotations(kind) if everything else resumable_fields(kind)
            yield from (f"{prefix}{name}.{field}" for field in nested)
        elif everything:
            yield prefix + name


def annotations(cls: type) -> dict[str, tuple[Any, tuple[object, ...]]]:
    """Returns {field: (its type, the metadata of `Annotated`)}."""
    found = {}
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        annotated = typing.get_origin(hint) is Annotated
        found[name] = (typing.get_args(hint)[0], hint.__metadata__) if annotated else (hint, ())
    return found


def _field_errors(name: str, value: object, hint: Any) -> list[str]:  # noqa: ANN401 - a type hint
    metadata = getattr(hint, "__metadata__", ())
    try:
        converted = _converted(value, typing.get_args(hint)[0] if metadata else hint)
    except TypeError as error:
        return [f"{name}={value!r} must be {error}"]
    ranges = [r for r in metadata if isinstance(r, Range) and not r.low <= converted <= r.high]
    return [f"{name}={value!r} must be {r}" for r in ranges]


def _converted(value: Any, expected: Any) -> Any:  # noqa: ANN401 - the value's type is what is being checked
    """Returns `value` as the type `expected`; the text of a TypeError says what it must be."""
    origin = typing.get_origin(expected)
    if origin in (tuple, dict) or (isinstance(expected, type) and issubclass(expected, tuple)):
        return _container(value, expected)
    if origin is Literal:
        choices = typing.get_args(expected)
        if value not in choices:
            raise TypeError(f"one of {', '.join(choices)}")
        return value
    # bool is a subclass of int: without this line `True` would pass as a number of layers.
    if isinstance(value, bool) and expected is not bool:
        raise TypeError(f"of type {expected.__name__}")
    if expected is float and isinstance(value, int):
        return float(value)
    if not isinstance(value, expected):
        raise TypeError(f"of type {expected.__name__}")
    return value


def _container(value: Any, expected: Any) -> Any:  # noqa: ANN401 - see `_converted`
    """Returns `value` as the type `expected`: `tuple[X, ...]`, `dict[str, X]` or a `NamedTuple`."""
    origin = typing.get_origin(expected)
    if origin is tuple:
        if not isinstance(value, tuple | list):
            raise TypeError("of type tuple")
        return tuple(_converted(item, typing.get_args(expected)[0]) for item in value)
    if origin is dict:
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            raise TypeError("of type dict with names as keys")
        return {name: _converted(item, typing.get_args(expected)[1]) for name, item in value.items()}
    types = typing.get_type_hints(expected)
    if not isinstance(value, tuple | list) or len(value) != len(types):
        raise TypeError(f"a tuple of ({', '.join(types)}) each")
    try:
        return expected(*(_converted(item, kind) for item, kind in zip(value, types.values(), strict=True)))
    except TypeError as error:
        raise TypeError(f"a tuple of ({', '.join(types)}) each; {value!r} has an entry that is not {error}") from None
