"""Blending and covering: mixup, CutMix, cutout (training specification 4.4 and 4.5)."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt

from scaledyolo.data.geometry import BoxRules, kept_boxes
from scaledyolo.data.sample import Sample
from scaledyolo.errors import UsageError

# Number of masks per share of the side (specification 4.4): large ones are rare.
_CUTOUT_SCALES = ((0.5, 1), (0.25, 2), (0.125, 4), (0.0625, 8), (0.03125, 16))
_CUTMIX_SIDES = (0.3, 0.8)  # share of each side that the pasted rectangle takes [Darknet classifier]


def mixup(first: Sample, second: Sample, rng: np.random.Generator, *, alpha: float = 8.0) -> Sample:
    """``r first + (1 - r) second`` with r from Beta(alpha, alpha); the boxes of both, unweighted."""
    _require_same_shape(first, second)
    share = float(rng.beta(alpha, alpha))
    blended = cv2.addWeighted(first.image, share, second.image, 1.0 - share, 0.0)
    return replace(
        first,
        image=np.asarray(blended, np.uint8),
        boxes_xyxy=np.concatenate([first.boxes_xyxy, second.boxes_xyxy]),
        class_ids=np.concatenate([first.class_ids, second.class_ids]),
    )


def cutmix(
    first: Sample, second: Sample, rng: np.random.Generator, *, rules: BoxRules, max_covered: float = 0.6
) -> Sample:
    """Paste a rectangle of the second sample (30 to 80 % of each side) at its own place into the first.

    Boxes of the first that are covered by more than ``max_covered`` go; those of the second are cut to the rectangle
    and stay under ``rules``.
    """
    _require_same_shape(first, second)
    low, high = _CUTMIX_SIDES
    shares = low + (high - low) * rng.random(2)
    width, height = int(first.width * shares[0]), int(first.height * shares[1])
    left = int(rng.integers(0, first.width - width + 1))
    top = int(rng.integers(0, first.height - height + 1))
    window = np.array((left, top, left + width, top + height), np.float32)
    image = first.image.copy()
    image[top : top + height, left : left + width] = second.image[top : top + height, left : left + width]
    uncovered = covered_share(first.boxes_xyxy, window) <= max_covered
    low_corner = np.maximum(second.boxes_xyxy[:, :2], window[:2])
    cut = np.concatenate([low_corner, np.minimum(second.boxes_xyxy[:, 2:], window[2:])], axis=1)
    cut[:, 2:] = np.maximum(cut[:, 2:], cut[:, :2])
    visible = kept_boxes(second.boxes_xyxy, cut, 1.0, rules)
    return replace(
        first,
        image=image,
        boxes_xyxy=np.concatenate([first.boxes_xyxy[uncovered], cut[visible]]),
        class_ids=np.concatenate([first.class_ids[uncovered], second.class_ids[visible]]),
    )


def cutout(sample: Sample, rng: np.random.Generator, *, max_covered: float = 0.6) -> Sample:
    """Hide 31 random rectangles, from one of up to half a side to sixteen of up to a thirty-second.

    Each has a uniform size from one pixel, a uniform centre and a uniform colour from 64 to 191 per channel. Boxes
    that a mask covers by more than ``max_covered`` go.
    """
    image = sample.image.copy()
    boxes, class_ids = sample.boxes_xyxy, sample.class_ids
    for share, count in _CUTOUT_SCALES:
        for _ in range(count):
            window = _draw_mask(rng, sample.height, sample.width, share)
            left, top, right, bottom = window
            image[top:bottom, left:right] = rng.integers(64, 192, 3)
            if len(boxes):
                visible = covered_share(boxes, np.array(window, np.float32)) <= max_covered
                boxes, class_ids = boxes[visible], class_ids[visible]
    return replace(sample, image=image, boxes_xyxy=boxes, class_ids=class_ids)


def covered_share(boxes_xyxy: npt.NDArray[np.float32], window: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(n,) share of each box's area that lies in the window (4,)."""
    low = np.maximum(boxes_xyxy[:, :2], window[:2])
    sides = np.maximum(np.minimum(boxes_xyxy[:, 2:], window[2:]) - low, 0)
    area = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(axis=1)
    return np.asarray(sides.prod(axis=1) / np.maximum(area, np.float32(1e-16)), np.float32)


def _draw_mask(rng: np.random.Generator, height: int, width: int, share: float) -> tuple[int, int, int, int]:
    mask_width = int(rng.integers(1, max(int(width * share), 1) + 1))
    mask_height = int(rng.integers(1, max(int(height * share), 1) + 1))
    left = max(int(rng.integers(0, width)) - mask_width // 2, 0)
    top = max(int(rng.integers(0, height)) - mask_height // 2, 0)
    return left, top, min(left + mask_width, width), min(top + mask_height, height)


def _require_same_shape(first: Sample, second: Sample) -> None:
    if first.image.shape != second.image.shape:
        raise UsageError(f"images to mix must share one shape, found {first.image.shape} and {second.image.shape}")
