"""The text of a Darknet cfg as sections with typed look-ups; every error names file and line.

The grammar is Darknet's own (docs: formats): all blanks are removed from a line, ``#`` and ``;`` start comments,
``[type]`` opens a section, anything else is ``key=value``; of a repeated key the first counts; numbers are read as the
longest numeric prefix (``4#x`` is 4). Stricter than Darknet on purpose: unknown keys are errors, and so are values that
are no numbers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scaledyolo.convert.darknet_keys import ALIASES, KEYS, UNSUPPORTED, known_keys
from scaledyolo.errors import CfgError, nearest

# The largest cfg of the field has about 60 kB and 400 sections; these limits only keep hostile files cheap.
MAX_BYTES = 1 << 20
MAX_SECTIONS = 10_000
MAX_LIST = 1_000

_INTEGER = re.compile(r"[+-]?\d{1,12}")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_BLANKS = re.compile(r"\s+")


def _shown(text: str) -> str:
    """Untrusted text, quoted and cut to a length that fits into one sentence."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


@dataclass(frozen=True, slots=True)
class Option:
    """The value of a key and the line it stands on."""

    value: str
    line: int


@dataclass(frozen=True, slots=True)
class Section:
    """One ``[section]``: its canonical kind, its number (the layer index; -1 for [net]) and its options."""

    kind: str
    index: int
    line: int
    source: str  # name of the file, for messages
    options: Mapping[str, Option]

    def error(self, message: str, key: str | None = None) -> CfgError:
        """An error at the line of ``key``, or of the section's head."""
        line = self.options[key].line if key is not None and key in self.options else self.line
        return CfgError(f"{self.source}:{line}: {message}")

    def has(self, key: str) -> bool:
        """Whether the key is written in the section."""
        return key in self.options

    def text(self, key: str, default: str) -> str:
        """The value as a word, without a comment behind it."""
        return self.options[key].value.split("#")[0] if key in self.options else default

    def integer(self, key: str, default: int, low: int, high: int) -> int:
        """The value as an integer within low..high."""
        if key not in self.options:
            return default
        value = self._integer(self.options[key].value, key)
        if not low <= value <= high:
            raise self.error(f"{key}={value} in [{self.kind}] is outside {low}..{high}", key)
        return value

    def flag(self, key: str) -> bool:
        """Whether the value is an integer other than 0; 0 when the key is missing."""
        return self.integer(key, 0, -(2**31), 2**31) != 0

    def number(self, key: str, default: float) -> float:
        """The value as a finite floating-point number."""
        return self._number(self.options[key].value, key) if key in self.options else default

    def integers(self, key: str) -> tuple[int, ...]:
        """The value as a list of integers; empty when the key is missing."""
        return tuple(self._integer(part, key) for part in self._parts(key))

    def numbers(self, key: str) -> tuple[float, ...]:
        """The value as a list of finite floating-point numbers; empty when the key is missing."""
        return tuple(self._number(part, key) for part in self._parts(key))

    def _parts(self, key: str) -> list[str]:
        parts = self.text(key, "").rstrip(",").split(",")
        if len(parts) > MAX_LIST:
            raise self.error(f"{key} in [{self.kind}] lists {len(parts)} values; at most {MAX_LIST} make sense", key)
        return parts if parts != [""] else []

    def _integer(self, text: str, key: str) -> int:
        match = _INTEGER.match(text)
        if not match:
            raise self.error(f"{key}={_shown(text)} in [{self.kind}] is not an integer", key)
        return int(match.group())

    def _number(self, text: str, key: str) -> float:
        match = _NUMBER.match(text)
        value = float(match.group()) if match else float("inf")
        if abs(value) == float("inf"):
            raise self.error(f"{key}={_shown(text)} in [{self.kind}] is not a number", key)
        return value


def read_text(path_or_text: str | os.PathLike[str]) -> tuple[str, str]:
    """Text of a cfg and the name to use in messages; a string with a line break or a ``[`` in front is the text itself.

    Raises:
        CfgError: the file is missing, too large or not text.
    """
    if isinstance(path_or_text, str) and ("\n" in path_or_text or path_or_text.lstrip().startswith("[")):
        data, source = path_or_text.encode("utf-8", "replace"), "cfg"
    else:
        source = os.fspath(path_or_text)
        data = _read_file(source)
    if len(data) > MAX_BYTES:
        raise CfgError(f"{source}: is larger than {MAX_BYTES} bytes, so it is not a Darknet cfg")
    if b"\0" in data:
        raise CfgError(f"{source}: is a binary file, not a Darknet cfg")
    # Comments come in any encoding; keys and values are ASCII.
    return data.decode("utf-8", "replace").removeprefix("\ufeff"), source


def _read_file(source: str) -> bytes:
    try:
        with Path(source).open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise CfgError(f"{source}: cannot be read: {reason}") from None


def read_sections(text: str, source: str, *, strict: bool = True) -> tuple[Section, ...]:
    """Cut a cfg into sections, [net] first.

    Args:
        text: the whole cfg.
        source: name of the file, for messages.
        strict: unknown keys are errors; otherwise they are ignored, as Darknet does.

    Raises:
        CfgError: a line that is neither section nor option, an unknown or unsupported section, an unknown key.
    """
    sections: list[Section] = []
    options: dict[str, Option] = {}
    for line, raw in enumerate(text.split("\n"), start=1):
        stripped = _BLANKS.sub("", raw)
        if not stripped or stripped[0] in "#;":
            continue
        if stripped[0] == "[":
            options = {}
            sections.append(_open(stripped, len(sections) - 1, line, source, options))
        elif not sections:
            raise CfgError(f"{source}:{line}: {_shown(raw.strip())} stands before the first section, [net]")
        else:
            _add_option(sections[-1], options, stripped, line, strict)
    if not sections:
        raise CfgError(f"{source}: has no sections; a Darknet cfg starts with [net]")
    return tuple(sections)


def _open(text: str, index: int, line: int, source: str, options: dict[str, Option]) -> Section:
    name = text[1:].split("]")[0]
    kind = ALIASES.get(name, name)
    if kind in UNSUPPORTED:
        what = UNSUPPORTED[kind]
        raise CfgError(f"{source}:{line}: [{name}] is {what}, which no detector of this family has")
    if kind not in KEYS:
        known = sorted({*KEYS, *ALIASES})
        raise CfgError(f"{source}:{line}: unknown section [{_shown(name)[1:-1]}].{nearest(name[:60], known)}")
    if (kind == "net") != (index == -1):
        raise CfgError(f"{source}:{line}: [net] must be the first section, and the only one of its kind")
    if index >= MAX_SECTIONS:
        raise CfgError(f"{source}:{line}: more than {MAX_SECTIONS} sections; this is not a detector")
    return Section(kind, index, line, source, options)


def _add_option(section: Section, options: dict[str, Option], text: str, line: int, strict: bool) -> None:
    key, equals, value = text.partition("=")
    if not equals:
        raise CfgError(f"{section.source}:{line}: {_shown(text)} is neither a [section] nor key=value")
    known = known_keys(section.kind)
    if strict and key not in known:
        hint = nearest(key[:60], sorted(known))
        raise CfgError(f"{section.source}:{line}: [{section.kind}] has no key {_shown(key)}.{hint}")
    options.setdefault(key, Option(value, line))
