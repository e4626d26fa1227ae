"""Where the images of a mosaic lie on their canvas (training specification 4.2 and 4.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from scaledyolo.data.geometry import Tile
from scaledyolo.data.sample import Sample
from scaledyolo.errors import UsageError

# fixed: the large branch and the first csp; random: csp of 2021 and YOLOv7.
MosaicCentre = Literal["fixed", "random"]


def mosaic_four(
    samples: Sequence[Sample], size: int, rng: np.random.Generator, *, centre: MosaicCentre = "random"
) -> list[Tile]:
    """Four samples (long side = ``size``) around one point of a canvas of 2 size x 2 size.

    Quadrants top left, top right, bottom left, bottom right; each image has its inner corner at the centre, which is
    (size, size), or U(size / 2, 3 size / 2) per axis in whole pixels. Two numbers are drawn in either case.
    """
    if len(samples) != 4:
        raise UsageError(f"a mosaic of four needs four images, found {len(samples)}")
    draws = rng.random(2)
    x = size if centre == "fixed" else int(size / 2 + draws[0] * size)
    y = size if centre == "fixed" else int(size / 2 + draws[1] * size)
    corners = (
        (x - samples[0].width, y - samples[0].height),
        (x, y - samples[1].height),
        (x - samples[2].width, y),
        (x, y),
    )
    return [Tile(sample, left, top) for sample, (left, top) in zip(samples, corners, strict=True)]


def mosaic_nine(samples: Sequence[Sample], size: int, rng: np.random.Generator) -> list[Tile]:
    """Nine samples, each abutting the one before, seen through a window of 2 size x 2 size of a canvas of 3 size.

    Order: centre, top, top right, right, bottom right, bottom, bottom left, left, top left. The window's offset is
    U(0, size) per axis in whole pixels; the tiles come back relative to it.
    """
    if len(samples) != 9:
        raise UsageError(f"a mosaic of nine needs nine images, found {len(samples)}")
    offset = rng.random(2)
    window_x, window_y = int(offset[0] * size), int(offset[1] * size)
    w = [sample.width for sample in samples]
    h = [sample.height for sample in samples]
    left = top = size
    right, bottom = size + w[0], size + h[0]
    corners = (
        (left, top),
        (left, top - h[1]),
        (left + w[1], top - h[2]),
        (right, top),
        (right, top + h[3]),
        (right - w[5], bottom),
        (right - w[5] - w[6], bottom),
        (left - w[7], bottom - h[7]),
        (left - w[8], bottom - h[7] - h[8]),
    )
    return [Tile(sample, x - window_x, y - window_y) for sample, (x, y) in zip(samples, corners, strict=True)]
