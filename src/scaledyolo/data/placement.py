"""Where an image lies on the network's canvas, and boxes there and back; arithmetic only, no pixels.

Geometry after training specification 4.1. Scales are those of the pixels really written (``round(w r) / w``), not the
ratio ``r`` before rounding: they differ by up to half a pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scaledyolo.errors import UsageError

# Grey of the border: every code base of the family pads with 114 (training specification 4.1).
BORDER_GREY = 114


@dataclass(frozen=True)
class Placement:
    """Where an image lies on a canvas: ``canvas = source * scale + pad``, per axis, all in pixels."""

    scale_x: float
    scale_y: float
    pad_left: int
    pad_top: int
    source_height: int
    source_width: int
    canvas_height: int
    canvas_width: int

    @property
    def content_height(self) -> int:
        """Rows of the canvas covered by the image."""
        return round(self.source_height * self.scale_y)

    @property
    def content_width(self) -> int:
        """Columns of the canvas covered by the image."""
        return round(self.source_width * self.scale_x)

    @property
    def pad_bottom(self) -> int:
        """Border rows below the image."""
        return self.canvas_height - self.pad_top - self.content_height

    @property
    def pad_right(self) -> int:
        """Border columns right of the image."""
        return self.canvas_width - self.pad_left - self.content_width

    def apply(self, boxes_xyxy: npt.ArrayLike) -> npt.NDArray[np.floating[Any]]:
        """Boxes (n, 4) in source pixels to canvas pixels; floating dtypes kept, integers to float32."""
        boxes = _as_boxes(boxes_xyxy)
        return (boxes * self._scale4() + self._pad4()).astype(boxes.dtype)

    def undo(self, boxes_xyxy: npt.ArrayLike, *, clip: bool = True) -> npt.NDArray[np.floating[Any]]:
        """Boxes (n, 4) in canvas pixels back to source pixels, clipped to the source unless told not to."""
        boxes = _as_boxes(boxes_xyxy)
        source = (boxes - self._pad4()) / self._scale4()
        if clip:
            limit = (self.source_width, self.source_height, self.source_width, self.source_height)
            np.clip(source, 0.0, limit, out=source)
        return source.astype(boxes.dtype)

    def _scale4(self) -> npt.NDArray[np.float64]:
        return np.array((self.scale_x, self.scale_y, self.scale_x, self.scale_y), np.float64)

    def _pad4(self) -> npt.NDArray[np.float64]:
        return np.array((self.pad_left, self.pad_top, self.pad_left, self.pad_top), np.float64)


def place_letterbox(source_height: int, source_width: int, height: int, width: int) -> Placement:
    """Placement of an image of the source size, aspect kept and centred, on a canvas of (height, width).

    Odd borders put the larger half right and below: left = round(d - .1), right = round(d + .1)
    (specification 4.1).
    """
    _require_positive(source_height, source_width, height, width)
    ratio = min(height / source_height, width / source_width)
    content_width = min(max(round(source_width * ratio), 1), width)
    content_height = min(max(round(source_height * ratio), 1), height)
    return Placement(
        scale_x=content_width / source_width,
        scale_y=content_height / source_height,
        pad_left=round((width - content_width) / 2 - 0.1),
        pad_top=round((height - content_height) / 2 - 0.1),
        source_height=source_height,
        source_width=source_width,
        canvas_height=height,
        canvas_width=width,
    )


def place_stretch(source_height: int, source_width: int, height: int, width: int) -> Placement:
    """Placement of an image of the source size that fills a canvas of (height, width), aspect not kept."""
    _require_positive(source_height, source_width, height, width)
    return Placement(
        scale_x=width / source_width,
        scale_y=height / source_height,
        pad_left=0,
        pad_top=0,
        source_height=source_height,
        source_width=source_width,
        canvas_height=height,
        canvas_width=width,
    )


def _as_boxes(boxes_xyxy: npt.ArrayLike) -> npt.NDArray[np.floating[Any]]:
    boxes = np.asarray(boxes_xyxy)
    if not np.issubdtype(boxes.dtype, np.floating):
        boxes = boxes.astype(np.float32)
    return boxes.reshape(-1, 4)


def _require_positive(*sides: int) -> None:
    if min(sides) < 1:
        raise UsageError(f"every side of an image or canvas must be at least one pixel, found {min(sides)}")
