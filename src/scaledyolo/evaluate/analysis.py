"""Every figure about one set of predictions, in one call."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scaledyolo.evaluate.arrays import GroundTruth, Predictions, check_pair
from scaledyolo.evaluate.bootstrap import ApBootstrap, bootstrap_average_precision
from scaledyolo.evaluate.breakdown import BucketAp, breakdown_by_aspect, breakdown_by_size
from scaledyolo.evaluate.coco import CocoMetrics, coco_metrics
from scaledyolo.evaluate.confusion import ConfusionMatrix, confusion_matrix
from scaledyolo.evaluate.curves import Calibration, ConfidenceCurves, calibration, confidence_curves
from scaledyolo.evaluate.error_types import ErrorReport, ErrorType, error_types
from scaledyolo.evaluate.matching import Matching, average_precision, match
from scaledyolo.evaluate.protocols import COCO, Protocol


@dataclass(frozen=True, slots=True)
class ImageErrors:
    """What went wrong in one image, at the confidence of the error report."""

    image: int  # row of the ground truth's image_ids
    missed: int  # objects that nothing found, whatever the reason
    wrong: int  # detections that are not right
    cost: float  # missed objects plus the scores of wrong detections: sure mistakes weigh more


@dataclass(frozen=True, slots=True, eq=False)
class Analysis:
    """All results of one evaluation."""

    protocol: Protocol
    coco: CocoMetrics
    ap50_area: float  # AP50 as the exact area under the envelope, Darknet's mAP (detector map -points 0)
    intervals: ApBootstrap | None  # None without images or when not asked for
    curves: ConfidenceCurves
    confusion: ConfusionMatrix
    errors: ErrorReport
    sizes: tuple[BucketAp, ...]
    aspects: tuple[BucketAp, ...]
    calibration: Calibration
    worst_images: tuple[ImageErrors, ...]  # worst first; perfect ones left out
    matching: Matching


def analyse(
    truth: GroundTruth,
    predictions: Predictions,
    *,
    protocol: Protocol = COCO,
    confidence: float = 0.25,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Analysis:
    """Compute everything that the report shows.

    Args:
        truth: what there is.
        predictions: what was detected under ``protocol``.
        protocol: says how the predictions were made and how many per image and class are scored.
        confidence: threshold at which errors, confusions and worst images are counted.
        num_resamples: of the bootstrap; 0 leaves the intervals out.
        seed: of the bootstrap.

    Raises:
        DataError: the two do not speak of the same images and classes.
        MissingPackageError: faster-coco-eval is not installed.
    """
    check_pair(truth, predictions)
    scored = protocol.scored_detections
    matching = match(truth, predictions, max_detections=scored)
    errors = error_types(truth, predictions, confidence=confidence, max_detections=scored)
    intervals = None
    if num_resamples > 0 and truth.num_images > 0:
        intervals = bootstrap_average_precision(matching, num_resamples=num_resamples, seed=seed)
    areas = average_precision(matching, "area")[matching.threshold_index(0.5)]
    present = ~np.isnan(areas)
    return Analysis(
        protocol=protocol,
        coco=coco_metrics(truth, predictions),
        ap50_area=float(areas[present].mean()) if present.any() else float("nan"),
        intervals=intervals,
        curves=confidence_curves(matching),
        confusion=confusion_matrix(truth, predictions, confidence=confidence),
        errors=errors,
        sizes=breakdown_by_size(truth, predictions, max_detections=scored),
        aspects=breakdown_by_aspect(truth, predictions, max_detections=scored),
        calibration=calibration(matching),
        worst_images=rank_images(matching, errors),
        matching=matching,
    )


def rank_images(matching: Matching, errors: ErrorReport) -> tuple[ImageErrors, ...]:
    """Images with mistakes, most costly first."""
    shown = matching.scores >= errors.confidence
    wrong = shown & (errors.kinds > ErrorType.IGNORED)
    hits = matching.found[matching.threshold_index(errors.iou)][shown]
    unfound = matching.counted.copy()
    unfound[hits[hits >= 0]] = False
    missed = np.bincount(matching.object_image_index[unfound], minlength=matching.num_images)
    num_wrong = np.bincount(matching.image_index[wrong], minlength=matching.num_images)
    sure = np.bincount(matching.image_index[wrong], matching.scores[wrong], minlength=matching.num_images)
    cost = missed + sure
    order = np.argsort(-cost, kind="stable")
    return tuple(ImageErrors(int(i), int(missed[i]), int(num_wrong[i]), float(cost[i])) for i in order if cost[i] > 0)
