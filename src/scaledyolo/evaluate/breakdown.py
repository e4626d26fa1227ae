"""Average precision of objects of one size or shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scaledyolo.boxes import area, xyxy_to_tlwh
from scaledyolo.evaluate.arrays import FloatArray, GroundTruth, Predictions
from scaledyolo.evaluate.matching import average_precision, match


@dataclass(frozen=True, slots=True)
class Bucket:
    """A half-open range [low, high) of the property looked at."""

    name: str
    low: float
    high: float


# Square root of the area, in pixels of the original image. COCO's borders 32 and 96, and one more on either side.
SIZE_BUCKETS = (
    Bucket("tiny, below 16 px", 0, 16),
    Bucket("small, 16 to 32 px", 16, 32),
    Bucket("medium, 32 to 96 px", 32, 96),
    Bucket("large, 96 to 288 px", 96, 288),
    Bucket("huge, from 288 px", 288, np.inf),
)
# Width over height.
ASPECT_BUCKETS = (
    Bucket("very tall, below 1:3", 0, 1 / 3),
    Bucket("tall, 1:3 to 2:3", 1 / 3, 2 / 3),
    Bucket("square, 2:3 to 3:2", 2 / 3, 1.5),
    Bucket("wide, 3:2 to 3:1", 1.5, 3),
    Bucket("very wide, from 3:1", 3, np.inf),
)


@dataclass(frozen=True, slots=True)
class BucketAp:
    """Average precision within a bucket; nan where it holds no object."""

    name: str
    num_objects: int
    ap: float
    ap50: float
    recall50: float  # share of its objects found at IoU 0.5, whatever the confidence


def breakdown_by_size(
    truth: GroundTruth, predictions: Predictions, buckets: Sequence[Bucket] = SIZE_BUCKETS, *, max_detections: int = 100
) -> tuple[BucketAp, ...]:
    """AP by the square root of the object's area."""
    sizes = np.sqrt(truth.areas), np.sqrt(area(predictions.boxes_xyxy))
    return _breakdown(truth, predictions, sizes, buckets, max_detections)


def breakdown_by_aspect(
    truth: GroundTruth,
    predictions: Predictions,
    buckets: Sequence[Bucket] = ASPECT_BUCKETS,
    *,
    max_detections: int = 100,
) -> tuple[BucketAp, ...]:
    """AP by width over height of the box."""
    aspects = _aspect(truth.boxes_xyxy), _aspect(predictions.boxes_xyxy)
    return _breakdown(truth, predictions, aspects, buckets, max_detections)


def _aspect(boxes_xyxy: FloatArray) -> FloatArray:
    sides = np.maximum(xyxy_to_tlwh(boxes_xyxy)[:, 2:], np.finfo(np.float32).tiny)
    ratio: FloatArray = sides[:, 0] / sides[:, 1]
    return ratio


def _breakdown(
    truth: GroundTruth,
    predictions: Predictions,
    values: tuple[FloatArray, FloatArray],
    buckets: Sequence[Bucket],
    max_detections: int,
) -> tuple[BucketAp, ...]:
    """COCO's rule for areas, for any property: objects outside excuse, unmatched detections outside are ignored."""
    results = []
    for bucket in buckets:
        objects, detections = ((bucket.low <= one) & (one < bucket.high) for one in values)
        matching = match(
            truth, predictions, max_detections=max_detections, objects_counted=objects, detections_counted=detections
        )
        num_objects = int(matching.num_positives.sum())
        if num_objects == 0:
            results.append(BucketAp(bucket.name, 0, float("nan"), float("nan"), float("nan")))
            continue
        precision = average_precision(matching)
        results.append(
            BucketAp(
                bucket.name,
                num_objects,
                float(np.nanmean(precision)),
                float(np.nanmean(precision[0])),
                float(matching.true_positive[0].sum() / num_objects),
            )
        )
    return tuple(results)
