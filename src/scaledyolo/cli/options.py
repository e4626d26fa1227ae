"""Values that several verbs take."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scaledyolo.errors import UsageError

if TYPE_CHECKING:
    from scaledyolo.arch.spec import ModelSpec


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
