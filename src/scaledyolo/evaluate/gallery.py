"""Pictures of mistakes: the photograph as JPEG, boxes and words over it as SVG, so that they stay sharp at any size."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from scaledyolo.errors import DataError
from scaledyolo.evaluate.analysis import ImageErrors
from scaledyolo.evaluate.arrays import FloatArray, GroundTruth, Predictions
from scaledyolo.evaluate.error_types import ErrorReport, ErrorType
from scaledyolo.evaluate.markup import shortened
from scaledyolo.evaluate.matching import Matching

LoadImage = Callable[[int], NDArray[Any]]
_LONGEST_SIDE = 640  # pixels of an embedded photograph
_JPEG_QUALITY = 82


def picture_gallery(
    worst: Sequence[ImageErrors],
    truth: GroundTruth,
    predictions: Predictions,
    matching: Matching,
    errors: ErrorReport,
    load_image: LoadImage,
) -> str:
    """HTML figures of these images.

    Args:
        load_image: gives image i as RGB uint8 (height, width, 3) at its original size.

    Raises:
        DataError: the loader returned something else.
    """
    figures = []
    for one in worst:
        overlay = _overlay(one.image, truth, predictions, matching, errors)
        photograph = _photograph(load_image(one.image), one.image)
        width, height = (int(side) for side in truth.image_sizes[one.image])
        name = escape(str(truth.image_ids[one.image]))
        figures.append(
            f'<figure class="photo" tabindex="0">'
            f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="image {name}">'
            f'<image href="data:image/jpeg;base64,{photograph}" width="{width}" height="{height}" '
            f'preserveAspectRatio="none"/>{overlay}</svg>'
            f"<figcaption><b>{name}</b> {one.missed} missed, {one.wrong} wrong</figcaption></figure>"
        )
    return "\n".join(figures)


def _photograph(image: NDArray[Any], row: int) -> str:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(f"image {row} must come as RGB uint8 (height, width, 3), got {image.dtype} {image.shape}")
    scale = min(1.0, _LONGEST_SIDE / max(image.shape[:2]))
    if scale < 1:
        size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    encoded, data = cv2.imencode(".jpg", np.ascontiguousarray(image[:, :, ::-1]), options)
    if not encoded:
        raise DataError(f"image {row} cannot be written as JPEG")
    return base64.b64encode(data.tobytes()).decode()


def _overlay(image: int, truth: GroundTruth, predictions: Predictions, matching: Matching, errors: ErrorReport) -> str:
    """Boxes of the objects and of the detections that are counted, mistakes last so that they lie on top."""
    unit = float(truth.image_sizes[image].max()) / 100  # of line widths and letters
    here = (matching.image_index == image) & (matching.scores >= errors.confidence)
    found = matching.found[matching.threshold_index(errors.iou)][here]
    right, wrong = [], []
    for row in np.flatnonzero(truth.image_index == image):
        name = truth.class_names[truth.class_ids[row]]
        if truth.crowd[row]:
            right.append(_box(truth.boxes_xyxy[row], "crowd", f"crowd of {name}", "", unit))
        elif row in found:
            right.append(_box(truth.boxes_xyxy[row], "found", name, "", unit))
        else:
            wrong.append(_box(truth.boxes_xyxy[row], "missed", f"missed: {name}", shortened(name, 12), unit))
    for place in np.flatnonzero(here):
        row, kind = matching.rows[place], ErrorType(errors.kinds[place])
        name, score = truth.class_names[predictions.class_ids[row]], f"{predictions.scores[row]:.2f}"
        if kind is ErrorType.CORRECT:
            right.append(_box(predictions.boxes_xyxy[row], "right", f"{name} {score}", "", unit))
        elif kind is not ErrorType.IGNORED:
            tooltip, label = (f"{text} {score}, {kind.name.lower()}" for text in (name, shortened(name, 12)))
            wrong.append(_box(predictions.boxes_xyxy[row], "wrong", tooltip, label, unit))
    return "".join(right + wrong)


def _box(box_xyxy: FloatArray, kind: str, tooltip: str, label: str, unit: float) -> str:
    left, top, right, bottom = (float(value) for value in box_xyxy)
    stroke = unit * (0.35 if kind in ("found", "right") else 0.6)
    dashes = f' stroke-dasharray="{unit * 1.6:.1f} {unit:.1f}"' if kind in ("missed", "crowd") else ""
    size = f'width="{max(right - left, 0):.1f}" height="{max(bottom - top, 0):.1f}"'
    rect = f'<rect class="{kind}" x="{left:.1f}" y="{top:.1f}" {size} stroke-width="{stroke:.2f}"{dashes}>'
    shape = f"{rect}<title>{escape(tooltip)}</title></rect>"
    if not label:
        return shape
    # Above the box, or inside its upper edge where there is no room above.
    baseline = top - unit * 0.7 if top > unit * 3.5 else top + unit * 2.9
    # Near the right border the words end at the box's right edge instead of running out of the picture.
    ends = right > unit * 66 and left > unit * 30
    place = f'x="{right:.1f}" text-anchor="end"' if ends else f'x="{max(left, 0) + unit * 0.3:.1f}"'
    letters = f'font-size="{unit * 2.3:.1f}" stroke-width="{unit * 0.6:.2f}"'
    return f'{shape}<text class="{kind}" {place} y="{baseline:.1f}" {letters}>{escape(label)}</text>'
