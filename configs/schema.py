"""The edge between a `ConfigDict` and library code: a section becomes a frozen dataclass, or every fault is named."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from configs.errors import UserError, did_you_mean

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any], path: str) -> T:
    """Returns `cls(**values)` after checking names and types; `path` prefixes field names in messages.

    Args:
        cls: a dataclass whose field types are int, float, bool, str, `Literal[...]` or `tuple[X, ...]`.
        values: one section of the config, e.g. `config.model`.
        path: what a user types to reach the section, e.g. "config.model".

    Raises:
        UserError: unknown, missing or mistyped fields, all of them in one message.
    """
    types = typing.get_type_hints(cls)
    faults = [f"{path}.{name} is unknown{did_you_mean(name, types)}" for name in values if name not in types]
    fields = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if field.name in values:
            try:
                fields[field.name] = _check(values[field.name], types[field.name])
            except TypeError as fault:
                faults.append(f"{path}.{field.name} is {values[field.name]!r}; legal: {fault}")
        elif field.default is dataclasses.MISSING:
            faults.append(f"{path}.{field.name} is missing")
    if faults:
        raise UserError("; ".join(faults))
    return cls(**fields)


def _check(value: Any, expected: Any) -> Any:  # noqa: ANN401 - the value's type is what is being checked
    """Returns `value` as `expected`; TypeError says what would be legal."""
    origin = typing.get_origin(expected)
    if origin is Literal:
        legal = typing.get_args(expected)
        if value not in legal:
            raise TypeError(", ".join(legal))
        return value
    if origin is tuple:
        if not isinstance(value, tuple | list):
            raise TypeError("a tuple")
        return tuple(_check(item, typing.get_args(expected)[0]) for item in value)
    # bool is a subclass of int: without this line `True` would pass as a number of layers.
    if isinstance(value, bool) and expected is not bool:
        raise TypeError(expected.__name__)
    if expected is float and isinstance(value, int):
        return float(value)
    if not isinstance(value, expected):
        raise TypeError(expected.__name__)
    return value
