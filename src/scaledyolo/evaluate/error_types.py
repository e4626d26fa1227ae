"""Why a detector is wrong: the six error types of TIDE and what mending each would be worth.

D. Bolya, S. Foley, J. Hays, J. Hoffman: TIDE, A General Toolbox for Identifying Object Detection Errors (ECCV 2020,
arXiv 2008.08115), section 2.2. Foreground IoU 0.5, background IoU 0.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from scaledyolo.boxes import iou_matrix
from scaledyolo.evaluate.arrays import BoolArray, FloatArray, GroundTruth, IntArray, Predictions
from scaledyolo.evaluate.confusion import per_image
from scaledyolo.evaluate.matching import NOTHING, Interpolation, Matching, match, weighted_average_precision


class ErrorType(IntEnum):
    """What a detection did; CORRECT and IGNORED are no errors. MISSED is about an object, not a detection."""

    CORRECT = 0
    IGNORED = 1  # inside a crowd
    LOCALISATION = 2  # right class, overlap between background and foreground IoU
    CONFUSION = 3  # foreground overlap, but with an object of another class
    DUPLICATE = 4  # right class and place, but a better scored detection has found the object
    BACKGROUND = 5  # no overlap above the background IoU with any object
    BOTH = 6  # wrong class and imprecise
    MISSED = 7  # an object that no detection found and no localisation or confusion error explains


ERRORS = tuple(kind for kind in ErrorType if kind > ErrorType.IGNORED)
DESCRIPTIONS: dict[ErrorType, str] = {
    ErrorType.LOCALISATION: "right class, box not good enough",
    ErrorType.CONFUSION: "box good, class wrong",
    ErrorType.DUPLICATE: "object found more than once",
    ErrorType.BACKGROUND: "detection where nothing is",
    ErrorType.BOTH: "class wrong and box not good enough",
    ErrorType.MISSED: "object not found at all",
}


@dataclass(frozen=True, slots=True, eq=False)
class ErrorReport:
    """Errors of a detector by type."""

    confidence: float  # detections below are not in the counts; delta AP looks at all
    iou: float
    background_iou: float
    counts: dict[ErrorType, int]
    num_correct: int
    num_objects: int
    ap: float  # at ``iou``, mean over classes with objects
    delta_ap: dict[ErrorType, float]  # AP gained if errors of this type alone were mended
    kinds: IntArray  # (d,): ErrorType of every scored detection, in the order of ``rows``
    rows: IntArray  # (d,): row of the predictions
    missed: IntArray  # rows of the missed objects at ``confidence``


def error_types(
    truth: GroundTruth,
    predictions: Predictions,
    *,
    confidence: float = 0.25,
    iou: float = 0.5,
    background_iou: float = 0.1,
    max_detections: int = 100,
    interpolation: Interpolation = "101-point",
) -> ErrorReport:
    """Sort every detection into one type, count those above ``confidence``, and compute the gain of mending each type.

    A detection that could be two things is the first of: localisation, confusion, duplicate, background, both (the
    order of TIDE). Mending (TIDE 2.3): a localisation or confusion error becomes right if its object is still free, the
    best scored one first, and vanishes otherwise; duplicate, background and both vanish; missed objects are excused.
    """
    matching = match(truth, predictions, np.array([iou]), max_detections=max_detections)
    kinds, targets = _classify(truth, predictions, matching, iou, background_iou)
    shown = matching.scores >= confidence
    missed = _missed(matching, kinds, targets, shown)
    counts = {kind: int(np.count_nonzero(kinds[shown] == kind)) for kind in ERRORS}
    counts[ErrorType.MISSED] = len(missed)
    whole = _mean_ap(matching, kinds, targets, ErrorType.CORRECT, interpolation)
    return ErrorReport(
        confidence=confidence,
        iou=iou,
        background_iou=background_iou,
        counts=counts,
        num_correct=int(np.count_nonzero(kinds[shown] == ErrorType.CORRECT)),
        num_objects=int(matching.num_positives.sum()),
        ap=whole,
        delta_ap={kind: _mean_ap(matching, kinds, targets, kind, interpolation) - whole for kind in ERRORS},
        kinds=kinds,
        rows=matching.rows,
        missed=missed,
    )


def _classify(
    truth: GroundTruth, predictions: Predictions, matching: Matching, iou: float, background_iou: float
) -> tuple[IntArray, IntArray]:
    """Type and the object meant (-1: none) of every scored detection: (d,), (d,)."""
    kinds = np.full(len(matching.rows), ErrorType.BACKGROUND, dtype=np.int64)
    targets = np.full(len(matching.rows), NOTHING, dtype=np.int64)
    scored = predictions.select(matching.rows)
    for detections, objects in per_image(truth, scored):
        objects = objects[~truth.crowd[objects]]
        if len(detections) == 0 or len(objects) == 0:
            continue
        overlaps = iou_matrix(scored.boxes_xyxy[detections], truth.boxes_xyxy[objects])
        same = scored.class_ids[detections][:, None] == truth.class_ids[objects]
        kind, place = _kinds_of_image(overlaps, same, iou, background_iou)
        kinds[detections] = kind
        targets[detections] = objects[place]
    correct = matching.true_positive[0]
    kinds[matching.ignored[0]] = ErrorType.IGNORED
    kinds[correct] = ErrorType.CORRECT
    targets[correct] = matching.found[0][correct]
    return kinds, targets


def _kinds_of_image(
    overlaps: FloatArray, same: BoolArray, iou: float, background_iou: float
) -> tuple[IntArray, IntArray]:
    """Type and column of the object meant of each row of ``overlaps`` (d, n), were none of them correct."""
    own, other = np.where(same, overlaps, -1.0), np.where(same, -1.0, overlaps)
    best_own, best_other = own.max(axis=1), other.max(axis=1)
    conditions = [
        (best_own >= background_iou) & (best_own < iou),
        best_other >= iou,
        best_own >= iou,
        np.maximum(best_own, best_other) < background_iou,
    ]
    kinds = [ErrorType.LOCALISATION, ErrorType.CONFUSION, ErrorType.DUPLICATE, ErrorType.BACKGROUND]
    kind = np.select(conditions, kinds, default=ErrorType.BOTH).astype(np.int64)
    return kind, np.where(kind == ErrorType.CONFUSION, other.argmax(axis=1), own.argmax(axis=1)).astype(np.int64)


def _missed(matching: Matching, kinds: IntArray, targets: IntArray, shown: BoolArray) -> IntArray:
    """Objects that count and that no shown detection found, misplaced or misnamed."""
    explained = np.isin(kinds, (ErrorType.CORRECT, ErrorType.LOCALISATION, ErrorType.CONFUSION)) & shown
    unexplained = matching.counted.copy()
    unexplained[targets[explained]] = False
    return np.flatnonzero(unexplained).astype(np.int64)


def _mean_ap(
    matching: Matching, kinds: IntArray, targets: IntArray, mended: ErrorType, interpolation: Interpolation
) -> float:
    """AP over classes with objects after the errors of one type were mended; CORRECT mends nothing."""
    right, gone = kinds == ErrorType.CORRECT, kinds == ErrorType.IGNORED
    class_ids, num_positives = matching.class_ids, matching.num_positives
    if mended in (ErrorType.LOCALISATION, ErrorType.CONFUSION):
        best = _best_for_free_objects(matching, kinds, targets, mended)
        right = right | best
        gone = gone | ((kinds == mended) & ~best)
        class_ids = np.where(best, matching.object_class_ids[targets], class_ids) if best.any() else class_ids
    elif mended is ErrorType.MISSED:
        missed = _missed(matching, kinds, targets, np.ones(len(kinds), dtype=bool))
        num_positives = num_positives - np.bincount(matching.object_class_ids[missed], minlength=matching.num_classes)
    elif mended is not ErrorType.CORRECT:
        gone = gone | (kinds == mended)
    values = []
    for class_id in np.flatnonzero(matching.num_positives):
        run = np.flatnonzero(class_ids == class_id)
        run = run[np.argsort(-matching.scores[run], kind="stable")]
        if num_positives[class_id] == 0:
            values.append(1.0)  # everything that was asked for is there
            continue
        positives = np.array([float(num_positives[class_id])])
        precision = weighted_average_precision(
            right[run][None], gone[run][None], np.ones((len(run), 1)), positives, interpolation
        )
        values.append(float(precision[0, 0]))
    return float(np.mean(values)) if values else float("nan")


def _best_for_free_objects(matching: Matching, kinds: IntArray, targets: IntArray, mended: ErrorType) -> BoolArray:
    """Of the errors of a type, the best scored one for each object that no correct detection has found."""
    taken = np.zeros(len(matching.counted), dtype=bool)
    taken[targets[kinds == ErrorType.CORRECT]] = True
    candidates = np.flatnonzero(kinds == mended)
    candidates = candidates[~taken[targets[candidates]]]
    candidates = candidates[np.argsort(-matching.scores[candidates], kind="stable")]
    _, first = np.unique(targets[candidates], return_index=True)
    best = np.zeros(len(kinds), dtype=bool)
    best[candidates[first]] = True
    return best
