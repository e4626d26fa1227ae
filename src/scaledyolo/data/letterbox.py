"""An image onto the network's canvas and boxes back: letterbox, plain stretch, and the network's input.

Geometry after training specification 4.1. A transform returns its own inverse: ``canvas, placement =
letterbox(...)``, later ``placement.undo(boxes_xyxy)``. Scales are those of the pixels really written
(``round(w r) / w``), not the ratio ``r`` before rounding: they differ by up to half a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from scaledyolo.errors import UsageError

# Grey of the border: every code base of the family pads with 114 (training specification 4.1).
BORDER_GREY = 114

Image = npt.NDArray[np.uint8]


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


def rectangle_for_batch(
    aspects: Sequence[float] | npt.NDArray[np.floating[Any]], size: int, stride: int, *, pad: float
) -> tuple[int, int]:
    """(height, width) of the canvas shared by images of these aspect ratios height / width.

    Specification 4.1: [1, 1], or [a_max, 1] if a_max < 1, or [1, 1 / a_min] if a_min > 1; then
    ``ceil(shape * size / stride + pad) * stride``. size: long side in pixels. pad: .5 in the stand-alone
    test, 0 during training.
    """
    lowest, highest = float(np.min(aspects)), float(np.max(aspects))
    shape = (1.0, 1.0)
    if highest < 1.0:
        shape = (highest, 1.0)
    elif lowest > 1.0:
        shape = (1.0, 1.0 / lowest)
    height, width = (math.ceil(side * size / stride + pad) * stride for side in shape)
    return height, width


def letterbox(image: Image, height: int, width: int) -> tuple[Image, Placement]:
    """Resize an image (h, w, 3) uint8 with its aspect kept and centre it on a grey canvas of (height, width).

    Small images are enlarged. Returns the canvas (height, width, 3) uint8 and the placement.

    Raises:
        UsageError: another dtype or shape, or a side below one pixel.
    """
    _require_image(image)
    placement = place_letterbox(image.shape[0], image.shape[1], height, width)
    canvas = np.empty((height, width, 3), np.uint8)
    top, left = placement.pad_top, placement.pad_left
    bottom, right = top + placement.content_height, left + placement.content_width
    # Only the border is painted: filling the whole canvas would touch every byte twice.
    canvas[:top] = BORDER_GREY
    canvas[bottom:] = BORDER_GREY
    canvas[top:bottom, :left] = BORDER_GREY
    canvas[top:bottom, right:] = BORDER_GREY
    _resize_into(image, canvas[top:bottom, left:right])
    return canvas, placement


def stretch(image: Image, height: int, width: int) -> tuple[Image, Placement]:
    """Resize an image to (height, width), aspect not kept (Darknet without letter_box); see `letterbox`."""
    _require_image(image)
    placement = place_stretch(image.shape[0], image.shape[1], height, width)
    canvas = np.empty((height, width, 3), np.uint8)
    _resize_into(image, canvas)
    return canvas, placement


def _resize_into(image: Image, target: Image) -> None:
    """Resize ``image``, bilinear, to fill ``target``, which may be a view into a larger array; no intermediate copy."""
    if image.shape == target.shape:
        target[...] = image
        return
    height, width = target.shape[:2]
    written = cv2.resize(image, (width, height), dst=target, interpolation=cv2.INTER_LINEAR)
    # OpenCV allocates anew when it cannot use the view (one row or column has ambiguous strides).
    if written is not target:
        target[...] = written


def images_to_input(
    canvases: Sequence[Image] | npt.NDArray[np.uint8], *, out: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.float32]:
    """Network input (B, 3, H, W) float32 in 0..1, contiguous, from canvases (H, W, 3) uint8 of one shape.

    The canvases are RGB; they are divided by 255, no mean, no deviation (specification 4.1). out: buffer of that shape
    to write into. Splitting into planes and then scaling them contiguously is about ten times faster than
    ``cv2.dnn.blobFromImages``.

    Raises:
        UsageError: no canvas, canvases of several shapes, or a buffer of another.
    """
    if len(canvases) == 0:
        raise UsageError("no canvas given for the network input; give at least one image")
    shape = canvases[0].shape
    for canvas in canvases:
        _require_image(canvas)
        if canvas.shape != shape:
            raise UsageError(f"canvases of one batch must share one shape, found {shape} and {canvas.shape}")
    height, width = shape[:2]
    tensor = np.empty((len(canvases), 3, height, width), np.float32) if out is None else out
    needed = (len(canvases), 3, height, width)
    if tensor.shape != needed or tensor.dtype != np.float32:
        raise UsageError(f"the input buffer is {tensor.dtype} {tensor.shape}, needed is float32 {needed}")
    planes = np.empty((3, height, width), np.uint8)
    for index, canvas in enumerate(canvases):
        split_planes(canvas, planes)
        np.divide(planes, np.float32(255.0), out=tensor[index])
    return tensor


def split_planes(image: Image, planes: npt.NDArray[np.uint8]) -> None:
    """Write an image (H, W, 3) uint8 into planes (3, H, W)."""
    targets = [planes[0], planes[1], planes[2]]
    written = cv2.split(image, targets)
    for target, plane in zip(targets, written, strict=True):
        if plane is not target:
            target[...] = plane


def _as_boxes(boxes_xyxy: npt.ArrayLike) -> npt.NDArray[np.floating[Any]]:
    boxes = np.asarray(boxes_xyxy)
    if not np.issubdtype(boxes.dtype, np.floating):
        boxes = boxes.astype(np.float32)
    return boxes.reshape(-1, 4)


def _require_image(image: npt.NDArray[Any]) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise UsageError(f"an image must be uint8 (height, width, 3), found {image.dtype} {image.shape}")


def _require_positive(*sides: int) -> None:
    if min(sides) < 1:
        raise UsageError(f"every side of an image or canvas must be at least one pixel, found {min(sides)}")
