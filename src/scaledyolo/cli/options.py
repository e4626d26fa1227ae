"""Values that several verbs take."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scaledyolo.errors import UsageError

if TYPE_CHECKING:
    from scaledyolo.arch.spec import ModelSpec

_SIZE = re.compile(r"(\d+)(?:x(\d+))?")


def model_source(words: Sequence[str], *, download: bool = False) -> str | tuple[str, str]:
    """What `load_model` takes, from one word or two; says on standard error where it is the default model.

    Raises:
        UsageError: another number of words, or the default model is meant and missing.
    """
    if len(words) not in (1, 2):
        raise UsageError(f"name one model, or cfg and weights, got {len(words)} values")
    if len(words) == 2:
        return words[0], words[1]
    from scaledyolo.default_model import DEFAULT
    from scaledyolo.model import chosen_file, default_title, stand_in_notice

    (name,) = words
    chosen = chosen_file(name, download=download)
    if name == DEFAULT:
        print(f"model: {default_title()}", file=sys.stderr)
    elif chosen != Path(name):
        print(stand_in_notice(name), file=sys.stderr)
    return str(chosen)


def sides(size: Sequence[int]) -> tuple[int, int] | None:
    """Height and width from `--size SIDE` or `--size HEIGHT WIDTH`; None where nothing was given.

    Raises:
        UsageError: another number of values, or values below one.
    """
    if not size:
        return None
    if len(size) > 2 or min(size) < 1:
        raise UsageError(f"--size takes one side or height and width in pixels, got {' '.join(map(str, size))}")
    return size[0], size[-1]


def sides_in_word(word: str) -> tuple[int, int]:
    """Height and width from one of several sizes, `--sizes 640 384x640`; see `sides` for options that take one size.

    Raises:
        UsageError: something else.
    """
    found = _SIZE.fullmatch(word)
    if found is None or not int(found[1]) or not int(found[2] or found[1]):
        raise UsageError(f"--sizes takes sides or HEIGHTxWIDTH in pixels, like 416 or 384x640, got {word!r}")
    return int(found[1]), int(found[2] or found[1])


def sized(spec: ModelSpec, size: int | None) -> ModelSpec:
    """The spec for another side of its square input; None or 0 leaves it as it is.

    Raises:
        SpecError: the side is not a multiple of the largest stride.
    """
    from scaledyolo.arch.lower import lower

    if not size:
        return spec
    lower(spec).check_size(size, size)
    return spec.with_size(size)
