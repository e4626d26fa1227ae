"""Strict construction of frozen dataclasses from plain values (JSON, YAML): unknown and missing keys are errors."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, TypeVar

from scaledyolo.errors import SpecError, nearest

T = TypeVar("T")


def build(cls: type[T], values: Any, where: str) -> T:
    """Build the dataclass ``cls`` from a mapping of plain values; ``where`` opens every error message.

    Raises:
        SpecError: an unknown key (names the nearest known), a missing key, or a value of the wrong type.
    """
    if not isinstance(values, dict):
        raise SpecError(f"{where}: expected a mapping of values, got {type(values).__name__}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise SpecError(f"{where}: unknown key {key!r}.{nearest(str(key), fields)}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise SpecError(f"{where}: missing key {name!r}")
    return cls(**{key: _coerce(hints[key], value, f"{where}.{key}") for key, value in values.items()})


def _coerce(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        cls = typing.cast("type[Any]", hint)
        return value if isinstance(value, cls) else build(cls, value, where)
    if origin is typing.Literal:
        if value not in arguments:
            known = ", ".join(map(str, arguments))
            raise SpecError(f"{where}: {value!r} is not one of {known}.{nearest(str(value), map(str, arguments))}")
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _coerce(next(argument for argument in arguments if argument is not type(None)), value, where)
    if origin is tuple:
        return _coerce_tuple(arguments, value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise SpecError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value


def _coerce_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise SpecError(f"{where}: expected a list, got {value!r}")
    if arguments[-1] is Ellipsis:
        return tuple(_coerce(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if len(value) != len(arguments):
        raise SpecError(f"{where}: expected {len(arguments)} values, got {len(value)}")
    pairs = zip(arguments, value, strict=True)
    return tuple(_coerce(hint, item, f"{where}[{index}]") for index, (hint, item) in enumerate(pairs))
