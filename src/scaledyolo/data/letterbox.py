"""An image onto the network's canvas and boxes back: letterbox, plain stretch, and the network's input.

A transform returns its own inverse: ``canvas, placement = letterbox(...)``, later ``placement.undo(boxes_xyxy)``; the
geometry is in :mod:`scaledyolo.data.placement`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from scaledyolo.data.placement import BORDER_GREY, Placement, place_letterbox, place_stretch
from scaledyolo.errors import UsageError

Image = npt.NDArray[np.uint8]


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


def _require_image(image: npt.NDArray[Any]) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise UsageError(f"an image must be uint8 (height, width, 3), found {image.dtype} {image.shape}")
