"""Moving images and their boxes together: random affine and perspective, what boxes remain, and fast painting.

Training specification 4.3. Coordinates are continuous: the left border of pixel 0 is 0, its centre .5. Boxes are
borders and pixels are sampled at centres with one and the same matrix, so that scaling shifts neither.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from scaledyolo.data.placement import BORDER_GREY
from scaledyolo.data.sample import Sample

Matrix = npt.NDArray[np.float64]
Boxes = npt.NDArray[np.float32]
_GREY = (BORDER_GREY, BORDER_GREY, BORDER_GREY)


@dataclass(frozen=True)
class BoxRules:
    """Which boxes survive a geometric change (specification 4.3)."""

    min_side: float = 2.0  # pixels of the output; both sides must be larger
    max_aspect: float = 20.0  # longer over shorter side
    min_area_ratio: float = 0.1  # visible share of the area: .2 in the large branch, .1 in csp and YOLOv7


@dataclass(frozen=True)
class AffineRange:
    """How far a random affine or perspective change may go (specification 4.3, table 3.8)."""

    degrees: float = 0.0  # rotation, each way
    translate: float = 0.1  # share of the output side, each way
    scale_low: float = 0.5  # 1 - scale of the tables
    scale_high: float = 1.5  # 1 + scale; YOLOv7 has 1.1 + scale
    shear: float = 0.0  # degrees, each way, per axis
    perspective: float = 0.0  # per pixel, each way, per axis; useful values are below .001


@dataclass(frozen=True, eq=False)
class Movement:
    """A matrix (3, 3) from canvas to output pixels and its scale, which the area rule needs."""

    matrix: Matrix
    scale: float

    @property
    def is_axis_aligned(self) -> bool:
        """Whether it only scales and shifts, so that rectangles stay rectangles."""
        m = self.matrix
        return bool(m[0, 1] == 0.0 and m[1, 0] == 0.0 and m[2, 0] == 0.0 and m[2, 1] == 0.0)


@dataclass(frozen=True, eq=False)
class Tile:
    """A sample on a canvas: ``canvas = source * scale + (left, top)``, cut at the borders of the canvas."""

    sample: Sample
    left: float
    top: float
    scale_x: float = 1.0
    scale_y: float = 1.0


@dataclass(frozen=True, eq=False)
class Patch:
    """A piece of the output painted from one image: ``output = source * scale + shift`` inside ``window``.

    window: left, top, right, bottom in output pixels. fill: colour beyond the image; None repeats its border.
    """

    image: npt.NDArray[np.uint8]
    scale_x: float
    scale_y: float
    shift_x: float
    shift_y: float
    window: tuple[float, float, float, float]
    fill: tuple[float, float, float] | None = None


def draw_movement(
    rng: np.random.Generator,
    limits: AffineRange,
    canvas: tuple[int, int],
    output: tuple[int, int],
) -> Movement:
    """Draw a movement from a canvas (height, width) to an output (height, width).

    Applied to a point in this order: canvas centre to the origin, perspective, rotation and scale, shear,
    translation to U(.5 - t, .5 + t) of the output. The number of draws does not depend on the limits.
    """
    draws = rng.random(8)
    signed = 2.0 * draws - 1.0
    scale = limits.scale_low + (limits.scale_high - limits.scale_low) * float(draws[3])
    shift_x = (0.5 + float(signed[6]) * limits.translate) * output[1]
    shift_y = (0.5 + float(signed[7]) * limits.translate) * output[0]
    if limits.degrees == limits.shear == limits.perspective == 0.0:
        matrix = np.array(
            (
                (scale, 0.0, shift_x - scale * canvas[1] / 2),
                (0.0, scale, shift_y - scale * canvas[0] / 2),
                (0.0, 0.0, 1.0),
            )
        )
        return Movement(matrix, scale)
    to_origin = np.array(((1, 0, -canvas[1] / 2), (0, 1, -canvas[0] / 2), (0, 0, 1)), np.float64)
    perspective = np.eye(3)
    perspective[2, :2] = signed[0:2] * limits.perspective
    angle = math.radians(float(signed[2]) * limits.degrees)
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    rotation = np.array(((cos, sin, 0), (-sin, cos, 0), (0, 0, 1)))  # y points down: positive turns anticlockwise
    shear = np.eye(3)
    shear[0, 1] = math.tan(math.radians(float(signed[4]) * limits.shear))
    shear[1, 0] = math.tan(math.radians(float(signed[5]) * limits.shear))
    translation = np.array(((1, 0, shift_x), (0, 1, shift_y), (0, 0, 1)))
    return Movement(translation @ shear @ rotation @ perspective @ to_origin, scale)


def move_boxes(boxes_xyxy: Boxes, movement: Movement) -> Boxes:
    """Upright hulls (n, 4) of the four moved corners."""
    m = movement.matrix
    if movement.is_axis_aligned:
        factors = np.array((m[0, 0], m[1, 1], m[0, 0], m[1, 1]))
        shifts = np.array((m[0, 2], m[1, 2], m[0, 2], m[1, 2]))
        return np.asarray(boxes_xyxy * factors + shifts, np.float32)
    corners = np.ones((len(boxes_xyxy), 4, 3))
    corners[:, :, 0] = boxes_xyxy[:, (0, 2, 0, 2)]
    corners[:, :, 1] = boxes_xyxy[:, (1, 1, 3, 3)]
    moved = corners @ m.T
    points = moved[:, :, :2] / moved[:, :, 2:]
    return np.concatenate([points.min(axis=1), points.max(axis=1)], axis=1).astype(np.float32)


def clip_boxes(boxes_xyxy: Boxes, height: float, width: float) -> Boxes:
    """The boxes (n, 4) cut at the borders of a frame."""
    return np.clip(boxes_xyxy, np.float32(0), np.array((width, height, width, height), np.float32))


def kept_boxes(before: Boxes, after: Boxes, scale: float, rules: BoxRules) -> npt.NDArray[np.bool_]:
    """(n,) which boxes remain, given them before and after (clipped) the change by ``scale`` (specification 4.3)."""
    old_area = (before[:, 2] - before[:, 0]) * (before[:, 3] - before[:, 1]) * np.float32(scale * scale)
    width, height = after[:, 2] - after[:, 0], after[:, 3] - after[:, 1]
    shorter, longer = np.minimum(width, height), np.maximum(width, height)
    kept: npt.NDArray[np.bool_] = (
        (shorter > rules.min_side)
        & (longer < rules.max_aspect * shorter)
        & (width * height > rules.min_area_ratio * old_area)
    )
    return kept


def move_tiles(
    tiles: Sequence[Tile],
    canvas: tuple[int, int],
    movement: Movement,
    output: tuple[int, int],
    rules: BoxRules,
    *,
    direct: bool = True,
) -> Sample:
    """Lay tiles on a grey canvas (height, width) and move it to an output (height, width), boxes with it.

    Where the movement only scales and shifts, each tile is painted straight into the output, without the canvas; that
    differs from the general way only in the pixels next to a seam (direct=False forces the general way, for tests).
    """
    image = np.empty((*output, 3), np.uint8)
    if direct and movement.is_axis_aligned:
        image.fill(BORDER_GREY)
        for tile in tiles:
            paint(image, _patch(tile, canvas, movement))
    else:
        _warp(_compose(tiles, canvas), movement, image)
    boxes, class_ids = boxes_on_canvas(tiles, canvas)
    moved = clip_boxes(move_boxes(boxes, movement), *output)
    kept = kept_boxes(boxes, moved, movement.scale, rules)
    return Sample(image, moved[kept], class_ids[kept], tiles[0].sample.index)


def boxes_on_canvas(tiles: Sequence[Tile], canvas: tuple[int, int]) -> tuple[Boxes, npt.NDArray[np.int64]]:
    """All boxes of the tiles in canvas pixels, clipped to the canvas, and their classes."""
    counts = [len(tile.sample.boxes_xyxy) for tile in tiles]
    placed = np.array([(t.scale_x, t.scale_y, t.left, t.top) for t in tiles], np.float32)
    of_box = placed[:, (0, 1, 0, 1, 2, 3, 2, 3)].repeat(counts, axis=0)
    boxes = np.concatenate([tile.sample.boxes_xyxy for tile in tiles]) * of_box[:, :4] + of_box[:, 4:]
    return clip_boxes(boxes, *canvas), np.concatenate([tile.sample.class_ids for tile in tiles])


def paint(output: npt.NDArray[np.uint8], patch: Patch) -> None:
    """Paint the pixels of ``output`` whose centres lie in the patch's window; bilinear."""
    left, top, right, bottom = patch.window
    x0, x1 = max(math.ceil(left - 0.5), 0), min(math.ceil(right - 0.5), output.shape[1])
    y0, y1 = max(math.ceil(top - 0.5), 0), min(math.ceil(bottom - 0.5), output.shape[0])
    if x0 >= x1 or y0 >= y1:
        return
    target = output[y0:y1, x0:x1]
    if patch.scale_x == patch.scale_y == 1.0 and _copy_shifted(patch, x0, y0, target):
        return
    # Index of a pixel = centre - .5, counted from the corner of the target.
    matrix = np.array(
        (
            (patch.scale_x, 0.0, 0.5 * patch.scale_x + patch.shift_x - 0.5 - x0),
            (0.0, patch.scale_y, 0.5 * patch.scale_y + patch.shift_y - 0.5 - y0),
        )
    )
    _warp_into(patch.image, matrix, target, patch.fill)


def flip_sample(sample: Sample, *, horizontal: bool, vertical: bool) -> Sample:
    """Mirror a sample left-right and/or up-down; its own inverse."""
    if not (horizontal or vertical):
        return sample
    code = -1 if horizontal and vertical else int(horizontal)
    boxes = sample.boxes_xyxy.copy()
    if horizontal:
        boxes[:, (0, 2)] = sample.width - boxes[:, (2, 0)]
    if vertical:
        boxes[:, (1, 3)] = sample.height - boxes[:, (3, 1)]
    return replace(sample, image=np.asarray(cv2.flip(sample.image, code), np.uint8), boxes_xyxy=boxes)


def _patch(tile: Tile, canvas: tuple[int, int], movement: Movement) -> Patch:
    m = movement.matrix
    image = tile.sample.image
    left, right = max(tile.left, 0.0), min(tile.left + image.shape[1] * tile.scale_x, float(canvas[1]))
    top, bottom = max(tile.top, 0.0), min(tile.top + image.shape[0] * tile.scale_y, float(canvas[0]))
    across, down = float(m[0, 0]), float(m[1, 1])
    shift_x, shift_y = float(m[0, 2]), float(m[1, 2])
    return Patch(
        image,
        scale_x=across * tile.scale_x,
        scale_y=down * tile.scale_y,
        shift_x=across * tile.left + shift_x,
        shift_y=down * tile.top + shift_y,
        window=(across * left + shift_x, down * top + shift_y, across * right + shift_x, down * bottom + shift_y),
    )


def _compose(tiles: Sequence[Tile], canvas: tuple[int, int]) -> npt.NDArray[np.uint8]:
    image = np.full((*canvas, 3), BORDER_GREY, np.uint8)
    still = Movement(np.eye(3), 1.0)
    for tile in tiles:
        paint(image, _patch(tile, canvas, still))
    return image


def _warp(canvas: npt.NDArray[np.uint8], movement: Movement, output: npt.NDArray[np.uint8]) -> None:
    half = np.array(((1, 0, 0.5), (0, 1, 0.5), (0, 0, 1)))
    matrix = np.linalg.inv(half) @ movement.matrix @ half
    if matrix[2, 0] == 0.0 and matrix[2, 1] == 0.0:
        _warp_into(canvas, matrix[:2], output, _GREY)
        return
    size = (output.shape[1], output.shape[0])
    output[...] = cv2.warpPerspective(
        canvas, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=_GREY
    )


def _warp_into(
    image: npt.NDArray[np.uint8],
    matrix: Matrix,
    target: npt.NDArray[np.uint8],
    fill: tuple[float, float, float] | None,
) -> None:
    written = cv2.warpAffine(
        image,
        matrix,
        (target.shape[1], target.shape[0]),
        dst=target,
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE if fill is None else cv2.BORDER_CONSTANT,
        borderValue=fill if fill is not None else _GREY,
    )
    if written is not target:
        target[...] = written


def _copy_shifted(patch: Patch, x0: int, y0: int, target: npt.NDArray[np.uint8]) -> bool:
    """Copy instead of interpolating if the shift is whole pixels and the image covers the target."""
    left, top = float(x0 - patch.shift_x), float(y0 - patch.shift_y)
    if not (left.is_integer() and top.is_integer()) or left < 0 or top < 0:
        return False
    piece = patch.image[int(top) : int(top) + target.shape[0], int(left) : int(left) + target.shape[1]]
    if piece.shape != target.shape:
        return False
    target[...] = piece
    return True
