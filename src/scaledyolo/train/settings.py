"""Frozen dataclasses from and to plain mappings, strictly: how YAML and the command line become settings.

A key that the dataclass does not have and a value of another type are errors that name the key; nothing is
converted silently, except an integer where a number is wanted.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from scaledyolo.errors import UsageError, nearest

Settings = TypeVar("Settings")

_TYPE_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def to_mapping(settings: Any) -> dict[str, Any]:
    """Nested plain values (dict, list, str, int, float, bool, None) of a dataclass, in the order of its fields."""
    return {entry.name: _plain(getattr(settings, entry.name)) for entry in fields(settings)}


def from_mapping(cls: type[Settings], document: Any, where: str) -> Settings:
    """A dataclass from nested plain values; keys that are missing take their defaults.

    Args:
        cls: the dataclass to make.
        document: what YAML gave.
        where: prefix of the errors, for example the file name.

    Raises:
        UsageError: an unknown or missing key, or a value of another type; names the key.
    """
    return _settings(cls, document, where, ())


def override(settings: Settings, assignment: str, where: str) -> Settings:
    """``settings`` with one value changed by text like ``"schedule.epochs=40"``; the value is read as YAML.

    ``where`` is the prefix of the errors.

    Raises:
        UsageError: no ``=``, an unknown key (names the nearest), or a value of another type.
    """
    key, equals, text = assignment.partition("=")
    if not equals:
        raise UsageError(f"{assignment!r} is not of the form key=value, for example schedule.epochs=40")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    return _override(settings, tuple(key.strip().split(".")), value, where, ())


def _override(settings: Settings, path: tuple[str, ...], value: Any, where: str, done: tuple[str, ...]) -> Settings:
    name, rest = path[0], path[1:]
    hints = _hints(type(settings))
    _check_known(name, hints, where, done)
    if rest:
        inner = getattr(settings, name)
        if not is_dataclass(inner):
            raise UsageError(f"{where}: {_dotted(done, name)} is a single value and has no {'.'.join(rest)!r}")
        changed = _override(inner, rest, value, where, (*done, name))
    else:
        changed = _typed(hints[name], value, where, (*done, name))
    return replace(settings, **{name: changed})  # type: ignore[type-var]


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return to_mapping(value)
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _settings(cls: type[Settings], document: Any, where: str, done: tuple[str, ...]) -> Settings:
    if not isinstance(document, Mapping):
        key = f"{_dotted(done)} " if done else ""
        raise UsageError(f"{where}: {key}must be a mapping of keys to values, got {_shown(document)}")
    hints = _hints(cls)
    for name in document:
        _check_known(str(name), hints, where, done)
    required = [
        entry.name
        for entry in fields(cls)  # type: ignore[arg-type]
        if entry.default is MISSING and entry.default_factory is MISSING
    ]
    for name in required:
        if name not in document:
            raise UsageError(f"{where}: the key {_dotted(done, name)} is missing")
    values = {name: _typed(hints[name], value, where, (*done, name)) for name, value in document.items()}
    return cls(**values)


def _typed(hint: Any, value: Any, where: str, path: tuple[str, ...]) -> Any:
    """``value`` as an instance of the annotation ``hint``."""
    origin, arguments = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        return _settings(hint, value, where, path)  # type: ignore[arg-type]
    if origin is Literal:
        return _choice(arguments, value, where, path)
    if origin in (Union, types.UnionType):
        return _one_of(arguments, value, where, path)
    if origin is tuple:
        return _tuple(arguments, value, where, path)
    if hint is float:
        return _number(value, where, path)
    if type(value) is hint:  # bool is an int to Python, but not here
        return value
    raise UsageError(f"{where}: {_dotted(path)} must be {_TYPE_WORDS.get(hint, hint)}, got {_shown(value)}")


def _number(value: Any, where: str, path: tuple[str, ...]) -> float:
    if isinstance(value, str):  # YAML 1.1 reads 5e-4, without a point, as text
        try:
            return float(value)
        except ValueError:
            pass
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    raise UsageError(f"{where}: {_dotted(path)} must be a number, got {_shown(value)}")


def _choice(known: tuple[Any, ...], value: Any, where: str, path: tuple[str, ...]) -> Any:
    if value in known:
        return value
    words = [str(word) for word in known]
    raise UsageError(
        f"{where}: {_dotted(path)} must be one of {', '.join(words)}, got {_shown(value)}.{nearest(str(value), words)}"
    )


def _one_of(hints: tuple[Any, ...], value: Any, where: str, path: tuple[str, ...]) -> Any:
    if value is None and type(None) in hints:
        return None
    errors: list[UsageError] = []
    for hint in hints:
        if hint is not type(None):
            try:
                return _typed(hint, value, where, path)
            except UsageError as error:
                errors.append(error)
    raise errors[0]


def _tuple(hints: tuple[Any, ...], value: Any, where: str, path: tuple[str, ...]) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise UsageError(f"{where}: {_dotted(path)} must be a list, got {_shown(value)}")
    if len(hints) == 2 and hints[1] is Ellipsis:
        hints = (hints[0],) * len(value)
    if len(hints) != len(value):
        raise UsageError(f"{where}: {_dotted(path)} must have {len(hints)} entries, got {len(value)}")
    return tuple(
        _typed(hint, item, where, (*path[:-1], f"{path[-1]}[{index}]"))
        for index, (hint, item) in enumerate(zip(hints, value, strict=True))
    )


def _check_known(name: str, hints: Mapping[str, Any], where: str, done: tuple[str, ...]) -> None:
    if name not in hints:
        inside = f" in {_dotted(done)}" if done else ""
        hint = nearest(name, hints) or f" Known: {', '.join(hints)}."
        raise UsageError(f"{where}: unknown key {name!r}{inside}.{hint}")


def _hints(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {entry.name: hints[entry.name] for entry in fields(cls)}


def _dotted(path: tuple[str, ...], *more: str) -> str:
    return ".".join((*path, *more))


def _shown(value: Any) -> str:
    return f"the {'list' if isinstance(value, (list, tuple)) else type(value).__name__} {value!r}"
