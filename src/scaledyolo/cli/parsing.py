"""From the words behind a verb to its dataclass; what is wrong with them becomes one sentence."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TextIO, get_args, get_type_hints

import tyro

from scaledyolo.errors import UsageError, nearest

_FRAME = re.compile("^[│╭╰] ?|[│╮╯]$")  # what tyro draws around its messages
_RULE = "───"
_HELP_INDENT = 8
_MISSING = re.compile(r"Missing from .*?: (?P<what>.+)")
_QUOTED = re.compile("'([^']*)'")
_NOTHING = ("", "''", "None")  # how tyro writes a default that stands for leaving the option out
_UNBROKEN = "\u00a0"  # a space at which no line is broken


def parse(command: type[Any], verb: str, summary: str, arguments: Sequence[str]) -> Any:
    """An instance of ``command``, a dataclass whose fields are the options of the verb.

    Raises:
        UsageError: an option or value does not exist or is missing; names the nearest option.
        SystemExit: the help was asked for and has been printed.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(_PlainSpaces(sys.stdout)):
            return tyro.cli(
                _with_hints(command),
                prog=f"scaledyolo {verb}",
                description=summary,
                args=list(arguments),
                config=() if _none_means_something(command) else (tyro.conf.DisallowNone,),
            )
    except SystemExit as end:
        if not end.code:
            raise
        flags = option_names(command)
        raise UsageError(f"{one_sentence(complaint.getvalue(), flags)} See `scaledyolo {verb} --help`.") from None


def _with_hints(command: type[Any]) -> type[Any]:
    """The same dataclass, whose help tells defaults in one piece, and only those that say something."""
    hints = get_type_hints(command, include_extras=True)
    told = {field.name: _hint_of(field) for field in dataclasses.fields(command)}
    annotations = {name: Annotated[hints[name], tyro.conf.arg(help_behavior_hint=hint)] for name, hint in told.items()}
    names = {name: getattr(command, name) for name in ("__module__", "__qualname__", "__doc__")}
    derived = type(command.__name__, (command,), {**names, "__annotations__": annotations})
    return dataclasses.dataclass(frozen=True)(derived)


def _hint_of(field: dataclasses.Field[Any]) -> str | Callable[[str], str]:
    if field.default is dataclasses.MISSING:
        return "(required)"
    return lambda default: "" if default in _NOTHING else f"(default: {default})".replace(" ", _UNBROKEN)


class _PlainSpaces:
    """A stream on which unbroken spaces come out as plain ones."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Pass a text on."""
        return self._stream.write(text.replace(_UNBROKEN, " "))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _none_means_something(command: type[Any]) -> bool:
    """Whether some option can be set to None that is not None already; else the help need not offer it."""
    hints = get_type_hints(command)
    return any(
        field.default is not None and type(None) in get_args(hints[field.name]) for field in dataclasses.fields(command)
    )


def option_names(command: type[Any]) -> list[str]:
    """The options of a verb as they are typed; arguments that go by their place have none."""
    hints = get_type_hints(command, include_extras=True)
    return [
        f"--{field.name.replace('_', '-')}"
        for field in dataclasses.fields(command)
        if tyro.conf.Positional not in getattr(hints[field.name], "__metadata__", ())
    ]


def one_sentence(box: str, flags: Sequence[str]) -> str:
    """What tyro says in a box of several lines, on one; what is unknown with the nearest of ``flags`` or choices."""
    parts: list[list[str]] = [[]]
    for line in box.splitlines():
        if _RULE in line:
            parts.append([])
        else:
            parts[-1].append(_FRAME.sub("", line).rstrip())
    texts = [part for part in parts if part]
    unknown = next((part for part in texts if "Unrecognized" in part[0]), None)
    if unknown is not None:
        words = " ".join(unknown).split(":", 1)[-1].replace(",", " ").split()
        option = next((word for word in words if word.startswith("-")), None)
        if option is None:
            return f"{words[0]!r} is one value too many."
        return f"there is no option {option!r}.{nearest(option, flags)}"
    if not texts:
        return "the arguments cannot be understood."
    # Below an option, further in, stands its help.
    told = " ".join(line.strip() for line in texts[0] if not line.startswith(" " * _HELP_INDENT)).rstrip(".")
    missing = _MISSING.fullmatch(told)
    if missing is not None:
        return f"{missing['what'].rstrip()} is missing."
    wrong, _, choices = told.partition("Expected one of")
    words = _QUOTED.findall(wrong)
    return f"{told}.{nearest(words[0], _QUOTED.findall(choices)) if choices and words else ''}"
