"""Frozen dataclasses from and to plain values, strictly: how YAML, JSON and the command line become specs and recipes.

A file may come from anybody: what is nested so deeply that Python gives up is refused like any other text that is no
JSON or YAML, and messages show the beginning of a value, which may be gigabytes long where YAML repeats itself.

A key that the dataclass does not have and a value of another type are errors that name the key; nothing is
converted silently, except an integer where a number is wanted. Which error is raised is said by the caller, because
a broken network is a SpecError and a mistyped option a UsageError.
"""

from __future__ import annotations

import json
import reprlib
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from functools import cache
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from scaledyolo.errors import ScaledYoloError, UsageError, nearest

T = TypeVar("T")
Path = tuple[str, ...]  # keys from the outermost mapping inwards

_TYPE_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


_short = reprlib.Repr()
_short.maxlevel, _short.maxlist, _short.maxtuple, _short.maxdict = 3, 20, 20, 20
_short.maxstring = _short.maxlong = _short.maxother = 200


def parse_json(text: str | bytes) -> Any:
    """Plain values from JSON.

    Raises:
        ValueError: it is no JSON, or nested too deeply; where it is no UTF-8 or no JSON, one of its subclasses.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parse_yaml(text: str) -> Any:
    """Plain values from YAML; no tag makes anything else.

    Raises:
        yaml.YAMLError: it is no YAML, or nested too deeply.
    """
    import yaml

    try:
        return yaml.safe_load(text)
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None


def to_mapping(settings: Any) -> dict[str, Any]:
    """Nested plain values (dict, list, str, int, float, bool, None) of a dataclass, in the order of its fields."""
    return {entry.name: _plain(getattr(settings, entry.name)) for entry in fields(settings)}


def from_mapping(cls: type[T], document: Any, where: str, error: type[ScaledYoloError] = UsageError) -> T:
    """A dataclass from nested plain values; keys that are missing take their defaults.

    Args:
        cls: the dataclass to make.
        document: what YAML or JSON gave; instances of the dataclasses inside are taken as they are.
        where: prefix of the errors, for example the file name.
        error: class of the errors.

    Raises:
        ScaledYoloError: of the class ``error``: an unknown or missing key, or a value of another type; names the key.
    """
    return _Reader(where, error).instance(cls, document, ())


def override(settings: T, assignment: str, where: str) -> T:
    """``settings`` with one value changed by text like ``"schedule.epochs=40"``; the value is read as YAML.

    ``where`` is the prefix of the errors.

    Raises:
        UsageError: no ``=``, an unknown key (names the nearest), or a value of another type.
    """
    import yaml

    key, equals, text = assignment.partition("=")
    if not equals:
        raise UsageError(f"{assignment!r} is not of the form key=value, for example schedule.epochs=40")
    try:
        value = parse_yaml(text)
    except yaml.YAMLError:
        value = text
    return _Reader(where, UsageError).changed(settings, tuple(key.strip().split(".")), value, ())


@dataclass(frozen=True)
class _Reader:
    """Turns plain values into what an annotation asks for; ``path`` leads to the value, for the errors."""

    where: str
    error: type[ScaledYoloError]

    def changed(self, settings: T, path: Path, value: Any, done: Path) -> T:
        """``settings`` with the value at ``path`` replaced."""
        name, rest = path[0], path[1:]
        hints = _hints(cast(Any, type(settings)))
        self._check_known(name, hints, done)
        inner = getattr(settings, name)
        if not rest:
            new = self.typed(hints[name], value, (*done, name))
        elif is_dataclass(inner):
            new = self.changed(inner, rest, value, (*done, name))
        else:
            raise self._wrong((*done, name), f"is a single value and has no {'.'.join(rest)!r}")
        return cast(T, replace(cast(Any, settings), **{name: new}))

    def instance(self, cls: type[T], document: Any, done: Path) -> T:
        """A dataclass from a mapping."""
        if isinstance(document, cls):
            return document
        if not isinstance(document, Mapping):
            key = f"{'.'.join(done)} " if done else ""
            raise self.error(f"{self.where}: {key}must be a mapping of keys to values, got {_shown(document)}")
        hints = _hints(cast(Any, cls))
        for name in document:
            self._check_known(str(name), hints, done)
        for entry in fields(cast(Any, cls)):
            required = entry.default is MISSING and entry.default_factory is MISSING
            if required and entry.name not in document:
                raise self.error(f"{self.where}: the key {'.'.join((*done, entry.name))} is missing")
        return cls(**{name: self.typed(hints[name], value, (*done, name)) for name, value in document.items()})

    def typed(self, hint: Any, value: Any, path: Path) -> Any:
        """``value`` as an instance of the annotation ``hint``."""
        origin, arguments = get_origin(hint), get_args(hint)
        if is_dataclass(hint):
            return self.instance(cast("type[Any]", hint), value, path)
        if origin is Literal:
            return self._choice(arguments, value, path)
        if origin in (Union, types.UnionType):
            return self._one_of(arguments, value, path)
        if origin is tuple:
            return self._tuple(arguments, value, path)
        if hint is float:
            return self._number(value, path)
        if type(value) is hint:  # bool is an int to Python, but not here
            return value
        raise self._wrong(path, f"must be {_TYPE_WORDS.get(hint, hint)}, got {_shown(value)}")

    def _number(self, value: Any, path: Path) -> float:
        if isinstance(value, str):  # YAML 1.1 reads 5e-4, without a point, as text
            try:
                return float(value)
            except ValueError:
                pass
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        raise self._wrong(path, f"must be a number, got {_shown(value)}")

    def _choice(self, known: tuple[Any, ...], value: Any, path: Path) -> Any:
        if value in known:
            return value
        choices = [str(word) for word in known]
        hint = nearest(str(value), choices)
        raise self._wrong(path, f"must be one of {', '.join(choices)}, got {_shown(value)}.{hint}")

    def _one_of(self, hints: tuple[Any, ...], value: Any, path: Path) -> Any:
        if value is None and type(None) in hints:
            return None
        errors: list[ScaledYoloError] = []
        for hint in hints:
            if hint is not type(None):
                try:
                    return self.typed(hint, value, path)
                except self.error as error:
                    errors.append(error)
        raise errors[0]

    def _tuple(self, hints: tuple[Any, ...], value: Any, path: Path) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)):
            raise self._wrong(path, f"must be a list, got {_shown(value)}")
        if len(hints) == 2 and hints[1] is Ellipsis:
            hints = (hints[0],) * len(value)
        if len(hints) != len(value):
            raise self._wrong(path, f"must have {len(hints)} entries, got {len(value)}")
        return tuple(
            self.typed(hint, item, (*path[:-1], f"{path[-1]}[{index}]"))
            for index, (hint, item) in enumerate(zip(hints, value, strict=True))
        )

    def _check_known(self, name: str, hints: Mapping[str, Any], done: Path) -> None:
        if name not in hints:
            inside = f" in {'.'.join(done)}" if done else ""
            hint = nearest(name, hints) or f" Known: {', '.join(hints)}."
            raise self.error(f"{self.where}: unknown key {name!r}{inside}.{hint}")

    def _wrong(self, path: Path, what: str) -> ScaledYoloError:
        return self.error(f"{self.where}: {'.'.join(path)} {what}")


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return to_mapping(value)
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


@cache
def _hints(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {entry.name: hints[entry.name] for entry in fields(cls)}


def _shown(value: Any) -> str:
    return f"the {'list' if isinstance(value, (list, tuple)) else type(value).__name__} {_short.repr(value)}"
