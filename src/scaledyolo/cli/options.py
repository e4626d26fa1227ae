"""Values that several verbs take."""

from __future__ import annotations

from collections.abc import Sequence

from scaledyolo.errors import UsageError


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
