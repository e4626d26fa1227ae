"""Darknet's augmentation: jittered crops stretched to the network size, cut together at a random point.

Training specification 4.5. Unlike the affine family it does not keep the aspect of images, and fills with the mean
colour, not with grey.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from scaledyolo.data.geometry import BoxRules, Patch, clip_boxes, kept_boxes, paint
from scaledyolo.data.placement import BORDER_GREY
from scaledyolo.data.sample import Sample

_CUT_LOW, _CUT_HIGH = 0.2, 0.8  # where the four tiles meet, as a share of each side


@dataclass(frozen=True)
class Crop:
    """A rectangle of the source (may reach beyond it) that is stretched onto the output."""

    left: float
    top: float
    width: float
    height: float


def draw_crop(rng: np.random.Generator, height: int, width: int, *, jitter: float, resize: float) -> Crop:
    """Move each side by U(-jitter, jitter) of its length, then zoom by or against U(1, resize) about the centre."""
    draws = rng.random(6)
    left, right = (2.0 * draws[0:2] - 1.0) * jitter * width
    top, bottom = (2.0 * draws[2:4] - 1.0) * jitter * height
    zoom = 1.0 + (resize - 1.0) * float(draws[4])
    zoom = zoom if draws[5] < 0.5 else 1.0 / zoom
    crop_width, crop_height = width - left - right, height - top - bottom
    return Crop(
        left=float(left + crop_width * (1.0 - 1.0 / zoom) / 2),
        top=float(top + crop_height * (1.0 - 1.0 / zoom) / 2),
        width=float(max(crop_width / zoom, 1.0)),
        height=float(max(crop_height / zoom, 1.0)),
    )


def jitter_crop(
    sample: Sample,
    rng: np.random.Generator,
    output: tuple[int, int],
    *,
    jitter: float,
    resize: float,
    rules: BoxRules,
) -> Sample:
    """A random crop of one sample stretched to (height, width); outside is the image's mean colour."""
    height, width = output
    image = np.empty((height, width, 3), np.uint8)
    crop = draw_crop(rng, sample.height, sample.width, jitter=jitter, resize=resize)
    boxes, kept = _place(image, sample, crop, output, (0.0, 0.0), (0.0, 0.0, float(width), float(height)), rules)
    return Sample(image, boxes[kept], sample.class_ids[kept], sample.index)


def jitter_mosaic(
    samples: Sequence[Sample],
    rng: np.random.Generator,
    output: tuple[int, int],
    *,
    jitter: float,
    resize: float,
    rules: BoxRules,
) -> Sample:
    """Four samples, each cropped as if it were to fill the whole output, meeting at U(.2, .8) of each side.

    Half of them show the part that lies under their tile; the other half are pushed into the tile's outer corner, so
    that a border of the real image, not of the fill, is there. Boxes are cut at their tile (Darknet: mosaic_bound = 1).
    """
    height, width = output
    image = np.full((height, width, 3), BORDER_GREY, np.uint8)
    draws = rng.random(2 + len(samples))
    cut_x = round(float(_CUT_LOW + (_CUT_HIGH - _CUT_LOW) * draws[0]) * width)
    cut_y = round(float(_CUT_LOW + (_CUT_HIGH - _CUT_LOW) * draws[1]) * height)
    windows = (
        (0, 0, cut_x, cut_y),
        (cut_x, 0, width, cut_y),
        (0, cut_y, cut_x, height),
        (cut_x, cut_y, width, height),
    )
    boxes, class_ids = [], []
    for number, (sample, window) in enumerate(zip(samples, windows, strict=True)):
        crop = draw_crop(rng, sample.height, sample.width, jitter=jitter, resize=resize)
        pushed = draws[2 + number] < 0.5
        shift = _to_corner(crop, sample, output, number) if pushed else (0.0, 0.0)
        placed, kept = _place(image, sample, crop, output, shift, tuple(map(float, window)), rules)
        boxes.append(placed[kept])
        class_ids.append(sample.class_ids[kept])
    return Sample(image, np.concatenate(boxes), np.concatenate(class_ids), samples[0].index)


def _to_corner(crop: Crop, sample: Sample, output: tuple[int, int], quadrant: int) -> tuple[float, float]:
    """Shift of the output that brings the image's own border, where the crop went beyond it, to the outer corner."""
    height, width = output
    across, down = width / crop.width, height / crop.height
    at_right, at_bottom = quadrant % 2 == 1, quadrant >= 2
    beyond_left, beyond_top = max(-crop.left, 0.0), max(-crop.top, 0.0)
    beyond_right = max(crop.left + crop.width - sample.width, 0.0)
    beyond_bottom = max(crop.top + crop.height - sample.height, 0.0)
    return (
        beyond_right * across if at_right else -beyond_left * across,
        beyond_bottom * down if at_bottom else -beyond_top * down,
    )


def _place(
    image: npt.NDArray[np.uint8],
    sample: Sample,
    crop: Crop,
    output: tuple[int, int],
    shift: tuple[float, float],
    window: tuple[float, ...],
    rules: BoxRules,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Paint one crop into its window; its boxes in output pixels cut at the window, and which of them remain."""
    across, down = output[1] / crop.width, output[0] / crop.height
    shift_x, shift_y = shift[0] - crop.left * across, shift[1] - crop.top * down
    left, top, right, bottom = window
    red, green, blue, _ = cv2.mean(sample.image)
    patch = Patch(sample.image, across, down, shift_x, shift_y, (left, top, right, bottom), fill=(red, green, blue))
    paint(image, patch)
    factors = np.array((across, down, across, down), np.float32)
    whole = sample.boxes_xyxy * factors + np.array((shift_x, shift_y, shift_x, shift_y), np.float32)
    cut = clip_boxes(whole - np.array((left, top, left, top), np.float32), bottom - top, right - left)
    cut = cut + np.array((left, top, left, top), np.float32)
    return cut, kept_boxes(whole, cut, 1.0, rules)
