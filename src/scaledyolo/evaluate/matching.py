"""Who found what: COCO's matching of detections to objects, kept per detection so that everything else can be counted.

faster-coco-eval gives the twelve figures but not the matches behind them. Bucketed AP, curves, error types and the
bootstrap need those, once; a test holds the average precision computed from them equal to pycocotools.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from scaledyolo.boxes import xyxy_to_tlwh
from scaledyolo.evaluate.arrays import BoolArray, FloatArray, GroundTruth, IntArray, Predictions, check_pair
from scaledyolo.evaluate.coco import IOU_THRESHOLDS, RECALL_POINTS

Interpolation = Literal["101-point", "area"]
NOTHING = -1


@dataclass(frozen=True, slots=True, eq=False)
class Matching:
    """Detections in the order metrics read them (class, then falling score), and the object each one found.

    T thresholds, d scored detections, n objects, K classes.
    """

    num_images: int
    num_classes: int
    iou_thresholds: FloatArray  # (T,)
    rows: IntArray  # (d,): row of the predictions
    image_index: IntArray  # (d,)
    class_ids: IntArray  # (d,), rising
    scores: FloatArray  # (d,), falling within a class
    found: IntArray  # (T, d): row of the object that the detection found, or -1
    ignored: BoolArray  # (T, d): neither right nor wrong (found a crowd, or lies outside the bucket looked at)
    counted: BoolArray  # (n,): the object must be found; False for crowds and what lies outside the bucket
    object_image_index: IntArray  # (n,)
    object_class_ids: IntArray  # (n,)
    class_starts: IntArray  # (K + 1,): detections of class k are class_starts[k]:class_starts[k + 1]

    @property
    def true_positive(self) -> BoolArray:
        """Detections that found an object that counts: (T, d)."""
        return (self.found >= 0) & ~self.ignored

    @property
    def num_positives(self) -> IntArray:
        """Objects of each class that must be found: (K,)."""
        return np.bincount(self.object_class_ids[self.counted], minlength=self.num_classes).astype(np.int64)

    def threshold_index(self, iou: float) -> int:
        """Row of the IoU threshold nearest to ``iou``."""
        return int(np.argmin(np.abs(self.iou_thresholds - iou)))


def match(
    truth: GroundTruth,
    predictions: Predictions,
    iou_thresholds: FloatArray = IOU_THRESHOLDS,
    *,
    max_detections: int = 100,
    objects_counted: BoolArray | None = None,
    detections_counted: BoolArray | None = None,
) -> Matching:
    """Match as pycocotools does: per image and class, best score first, to the best free object that is close enough.

    Args:
        truth: objects; crowds excuse any number of detections and are never missed.
        predictions: detections, any order; equal scores keep the order of images, then of rows.
        iou_thresholds: (T,).
        max_detections: best detections per image and class that are looked at.
        objects_counted: (n,), optional: objects of the bucket; others excuse the detection that finds them.
        detections_counted: (all predictions,), optional: detections of the bucket; others are ignored unless they find
            an object that counts.
    """
    check_pair(truth, predictions)
    counted = ~truth.crowd if objects_counted is None else objects_counted & ~truth.crowd
    rows = _scored_rows(predictions, max_detections)
    key = predictions.image_index[rows] * predictions.num_classes + predictions.class_ids[rows]
    found = np.full((len(iou_thresholds), len(rows)), NOTHING, dtype=np.int64)
    for detections, objects in _groups(key, truth):
        # Objects that count come first: one that is ignored is taken only if no counted one fits (pycocotools).
        objects = objects[np.argsort(~counted[objects], kind="stable")]
        overlaps = coco_overlaps(
            predictions.boxes_xyxy[rows[detections]], truth.boxes_xyxy[objects], truth.crowd[objects]
        )
        _match_group(overlaps, iou_thresholds, truth.crowd[objects], counted[objects], objects, found[:, detections])
    ignored = (found >= 0) & ~counted[found] if len(counted) else np.zeros_like(found, dtype=bool)
    if detections_counted is not None:
        ignored |= (found < 0) & ~detections_counted[rows]
    return _by_class(truth, predictions, iou_thresholds, rows, found, ignored, counted)


def coco_overlaps(detections_xyxy: FloatArray, objects_xyxy: FloatArray, crowd: BoolArray) -> FloatArray:
    """IoU (d, n), with a crowd the share of the detection inside it; pycocotools' arithmetic, to the last bit.

    A threshold met exactly must be met here too, hence not :func:`scaledyolo.boxes.iou_matrix`.
    """
    left, top, width, height = xyxy_to_tlwh(detections_xyxy)[:, None].transpose(2, 0, 1)
    object_left, object_top, object_width, object_height = xyxy_to_tlwh(objects_xyxy)[None].transpose(2, 0, 1)
    shared_width = np.minimum(left + width, object_left + object_width) - np.maximum(left, object_left)
    shared_height = np.minimum(top + height, object_top + object_height) - np.maximum(top, object_top)
    intersection = np.maximum(shared_width, 0.0) * np.maximum(shared_height, 0.0)
    area = width * height
    union = np.where(crowd[None], area, area + object_width * object_height - intersection)
    overlaps: FloatArray = np.divide(intersection, union, out=np.zeros_like(intersection), where=intersection > 0)
    return overlaps


def _scored_rows(predictions: Predictions, max_detections: int) -> IntArray:
    """Rows of the predictions by image, class and falling score, the best ``max_detections`` of each pair."""
    order = np.lexsort((-predictions.scores, predictions.class_ids, predictions.image_index))
    key = predictions.image_index[order] * predictions.num_classes + predictions.class_ids[order]
    rank = np.arange(len(key)) - np.searchsorted(key, key)
    return order[rank < max_detections].astype(np.int64)


def _groups(key: IntArray, truth: GroundTruth) -> Iterator[tuple[slice, IntArray]]:
    """For every pair of image and class that has both: the run of detections and the rows of the objects."""
    object_key = truth.image_index * truth.num_classes + truth.class_ids
    object_rows = np.argsort(object_key, kind="stable")
    object_key = object_key[object_rows]
    shared = np.intersect1d(key, object_key)
    runs = [np.searchsorted(keys, shared, side) for keys in (key, object_key) for side in ("left", "right")]
    for start, stop, object_start, object_stop in zip(*runs, strict=True):
        yield slice(int(start), int(stop)), object_rows[object_start:object_stop]


def _match_group(
    overlaps: FloatArray,
    thresholds: FloatArray,
    crowd: BoolArray,
    counted: BoolArray,
    objects: IntArray,
    found: IntArray,
) -> None:
    """Fill ``found`` (T, d), in place, for one image and class; ``overlaps`` is (d, n) with counted objects first."""
    lowest = np.minimum(thresholds, 1 - 1e-10)[:, None]
    num_counted = int(counted.sum())
    last = overlaps.shape[1] - 1
    free = np.ones((len(thresholds), overlaps.shape[1]), dtype=bool)
    # A detection that reaches no threshold with any object changes nothing; most are such.
    for detection in np.flatnonzero((overlaps >= lowest.min()).any(axis=1)):
        fits = np.where((free | crowd) & (overlaps[detection] >= lowest), overlaps[detection], -1.0)
        # Counted objects are preferred; among equals the last one wins, as in pycocotools.
        preferred = num_counted > 0 and fits[:, :num_counted].max(axis=1) >= 0
        if num_counted:
            fits[preferred, num_counted:] = -1.0
        best = last - np.argmax(fits[:, ::-1], axis=1)
        hit = np.flatnonzero(fits[np.arange(len(fits)), best] >= 0)
        free[hit, best[hit]] = False
        found[hit, detection] = objects[best[hit]]


def _by_class(
    truth: GroundTruth,
    predictions: Predictions,
    iou_thresholds: FloatArray,
    rows: IntArray,
    found: IntArray,
    ignored: BoolArray,
    counted: BoolArray,
) -> Matching:
    class_ids, scores = predictions.class_ids[rows], predictions.scores[rows]
    order = np.lexsort((-scores, class_ids))  # stable: equal scores stay in the order of images
    class_ids = class_ids[order]
    return Matching(
        num_images=truth.num_images,
        num_classes=truth.num_classes,
        iou_thresholds=np.asarray(iou_thresholds, dtype=np.float64),
        rows=rows[order],
        image_index=predictions.image_index[rows][order],
        class_ids=class_ids,
        scores=scores[order],
        found=found[:, order],
        ignored=ignored[:, order],
        counted=counted,
        object_image_index=truth.image_index,
        object_class_ids=truth.class_ids,
        class_starts=np.searchsorted(class_ids, np.arange(truth.num_classes + 1)).astype(np.int64),
    )


def average_precision(matching: Matching, interpolation: Interpolation = "101-point") -> FloatArray:
    """Average precision (T, K) for every threshold and class; nan for a class without objects."""
    weights = np.ones((matching.num_images, 1))
    columns = [class_average_precision(matching, k, weights, interpolation) for k in range(matching.num_classes)]
    return np.concatenate(columns, axis=1)


def class_average_precision(
    matching: Matching, class_id: int, image_weights: NDArray[np.floating], interpolation: Interpolation = "101-point"
) -> FloatArray:
    """Average precision (T, B) of one class for B data sets in which image i occurs ``image_weights[i, b]`` times."""
    run = slice(int(matching.class_starts[class_id]), int(matching.class_starts[class_id + 1]))
    objects = matching.counted & (matching.object_class_ids == class_id)
    return weighted_average_precision(
        matching.found[:, run] >= 0,
        matching.ignored[:, run],
        image_weights[matching.image_index[run]],
        image_weights[matching.object_image_index[objects]].sum(axis=0),
        interpolation,
    )


def weighted_average_precision(
    found: BoolArray,
    ignored: BoolArray,
    weights: NDArray[np.floating],
    num_positives: NDArray[np.floating],
    interpolation: Interpolation = "101-point",
) -> FloatArray:
    """Average precision (T, B) of one class from flags of its detections in falling order of score.

    The envelope of the precision only rises at true positives, so nothing else is looked at: this is what makes a
    thousand resamples cheap.

    Args:
        found: (T, d), the detection found an object (counted or not).
        ignored: (T, d), the detection counts for nothing.
        weights: (d, B), how often each detection occurs in each of B data sets.
        num_positives: (B,), objects to find; 0 gives nan.
        interpolation: COCO's mean over 101 recalls, or the exact area under the envelope.
    """
    result = np.zeros((len(found), len(num_positives)))
    seen_all = np.cumsum(weights, axis=0, dtype=np.float64)
    for threshold, (hits, skipped) in enumerate(zip(found & ~ignored, ignored, strict=True)):
        places = np.flatnonzero(hits)
        if len(places) == 0:
            continue
        true_positives = np.cumsum(weights[places], axis=0, dtype=np.float64)
        seen = seen_all[places]
        blanks = np.flatnonzero(skipped)
        if len(blanks):
            unseen = np.cumsum(weights[blanks], axis=0, dtype=np.float64)
            before = np.searchsorted(blanks, places)  # ignored detections with a better score
            seen[before > 0] -= unseen[before[before > 0] - 1]
        precision = np.divide(true_positives, seen, out=np.zeros_like(seen), where=seen > 0)
        envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
        reached = true_positives / np.maximum(num_positives, 1)
        if interpolation == "101-point":
            reached = recall_points_reached(reached) / len(RECALL_POINTS)
        result[threshold] = (envelope * np.diff(reached, axis=0, prepend=0.0)).sum(axis=0)
    result[:, num_positives == 0] = np.nan
    return result


def recall_points_reached(recall: FloatArray) -> IntArray:
    """How many of the 101 points each recall (0 to 1) reaches: ``searchsorted(points, recall, "right")``, several
    times faster.

    ``linspace`` and a quotient may round to different sides, so the count guessed by multiplication is put right by
    one.
    """
    guess = (recall * (len(RECALL_POINTS) - 1)).astype(np.int64)
    beyond = np.append(RECALL_POINTS, np.inf)
    guess -= beyond[guess] > recall
    guess += beyond[guess + 1] <= recall
    return guess + 1
