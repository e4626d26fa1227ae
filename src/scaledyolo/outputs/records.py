"""Detections of one frame as plain values, the same for every text format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scaledyolo.errors import OutputError
from scaledyolo.sources.frame import Frame

if TYPE_CHECKING:
    from supervision import Detections


class Record(NamedTuple):
    """One detection."""

    class_id: int
    class_name: str
    confidence: float
    xyxy: tuple[float, float, float, float]  # pixels of the frame
    tracker_id: int | None


def image_of(frame: Frame) -> np.ndarray:
    """The picture of a frame that has one."""
    if frame.image is None:
        raise OutputError(f"{frame.source} has no picture to write results for: {frame.error}")
    return frame.image


def records_of(detections: Detections) -> Iterator[Record]:
    """The detections in order; missing classes are class 0, missing names the number, missing confidences 1."""
    count = len(detections)
    class_ids = np.zeros(count, int) if detections.class_id is None else detections.class_id
    confidences = np.ones(count) if detections.confidence is None else detections.confidence
    names = class_names_of(detections)
    trackers = detections.tracker_id
    for i in range(count):
        x1, y1, x2, y2 = (float(value) for value in detections.xyxy[i])
        tracker = None if trackers is None else int(trackers[i])
        yield Record(int(class_ids[i]), names[i], float(confidences[i]), (x1, y1, x2, y2), tracker)


def class_names_of(detections: Detections) -> list[str]:
    """Class name of every detection; where the detector gives none, its number."""
    names = detections.data.get("class_name")
    if names is None:
        ids = [0] * len(detections) if detections.class_id is None else detections.class_id
        return [str(int(class_id)) for class_id in ids]
    return [str(name) for name in names]
