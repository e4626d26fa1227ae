"""Values that several verbs take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from scaledyolo.errors import UsageError

if TYPE_CHECKING:
    from scaledyolo.arch.spec import ModelSpec


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
