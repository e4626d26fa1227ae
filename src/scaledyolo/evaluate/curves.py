"""Precision, recall and F1 against confidence; which operating point to choose; what a confidence means."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scaledyolo.errors import UsageError
from scaledyolo.evaluate.arrays import FloatArray, IntArray
from scaledyolo.evaluate.matching import Matching

NUM_CONFIDENCES = 1001  # 0, 0.001, ... 1: finer than anyone sets a threshold


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """What a detector does at one confidence threshold."""

    confidence: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, slots=True, eq=False)
class ConfidenceCurves:
    """Precision, recall and F1 of every class at C thresholds; a detection counts if its score is at least that.

    Where nothing is detected precision is 1: no claim was made, so none was wrong.
    """

    iou: float
    confidences: FloatArray  # (C,), rising
    true_positives: IntArray  # (K, C)
    detections: IntArray  # (K, C), ignored ones not counted
    num_positives: IntArray  # (K,)

    @property
    def precision(self) -> FloatArray:
        """(K, C)."""
        return _precision(self.true_positives, self.detections)

    @property
    def recall(self) -> FloatArray:
        """(K, C); nan for a class without objects."""
        return _recall(self.true_positives, self.num_positives[:, None])

    @property
    def f1(self) -> FloatArray:
        """(K, C): harmonic mean of both; nan for a class without objects."""
        return _f1(self.true_positives, self.detections, self.num_positives[:, None])

    @property
    def overall_precision(self) -> FloatArray:
        """(C,): all classes pooled."""
        return _precision(self.true_positives.sum(axis=0), self.detections.sum(axis=0))

    @property
    def overall_recall(self) -> FloatArray:
        """(C,): all classes pooled."""
        return _recall(self.true_positives.sum(axis=0), self.num_positives.sum())

    @property
    def overall_f1(self) -> FloatArray:
        """(C,): all classes pooled."""
        return _f1(self.true_positives.sum(axis=0), self.detections.sum(axis=0), self.num_positives.sum())

    @property
    def mean_f1(self) -> FloatArray:
        """(C,): mean over classes with objects, the average that the PyTorch branches maximise (training spec 5.4)."""
        present = self.num_positives > 0
        return self.f1[present].mean(axis=0) if present.any() else np.full(len(self.confidences), np.nan)

    def at(self, confidence: float, class_id: int | None = None) -> OperatingPoint:
        """The operating point at the nearest threshold, of one class or of all pooled."""
        return self._point(int(np.argmin(np.abs(self.confidences - confidence))), class_id)

    def best_f1(self, class_id: int | None = None) -> OperatingPoint:
        """The threshold of highest F1, of one class or of all pooled; the lowest of equals, which favours recall."""
        f1 = self.overall_f1 if class_id is None else self.f1[class_id]
        return self._point(int(np.argmax(np.nan_to_num(f1, nan=0.0))), class_id)

    def for_precision(self, target: float, class_id: int | None = None) -> OperatingPoint | None:
        """The lowest threshold with at least this precision and something found; None if there is none."""
        return self._first(self._series(class_id)[0] >= target, class_id)

    def for_recall(self, target: float, class_id: int | None = None) -> OperatingPoint | None:
        """The highest threshold with at least this recall; None if there is none."""
        reached = self._series(class_id)[1] >= target
        return self._point(int(np.flatnonzero(reached)[-1]), class_id) if reached.any() else None

    def _series(self, class_id: int | None) -> tuple[FloatArray, FloatArray, FloatArray]:
        if class_id is None:
            return self.overall_precision, self.overall_recall, self.overall_f1
        return self.precision[class_id], self.recall[class_id], self.f1[class_id]

    def _first(self, reached: np.ndarray, class_id: int | None) -> OperatingPoint | None:
        places = np.flatnonzero(reached & (self._series(class_id)[1] > 0))
        return self._point(int(places[0]), class_id) if len(places) else None

    def _point(self, place: int, class_id: int | None) -> OperatingPoint:
        precision, recall, f1 = self._series(class_id)
        return OperatingPoint(
            float(self.confidences[place]), float(precision[place]), float(recall[place]), float(f1[place])
        )


def confidence_curves(matching: Matching, iou: float = 0.5, num_confidences: int = NUM_CONFIDENCES) -> ConfidenceCurves:
    """Count right and wrong detections of every class above every threshold, at the IoU threshold nearest ``iou``."""
    if num_confidences < 2:
        raise UsageError(f"a confidence curve needs at least 2 thresholds, got {num_confidences}")
    confidences = np.arange(num_confidences) / (num_confidences - 1)  # unlike linspace, 290 / 1000 is the float 0.29
    row = matching.threshold_index(iou)
    shape = (matching.num_classes, num_confidences)
    true_positives, detections = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for class_id in range(matching.num_classes):
        run = slice(int(matching.class_starts[class_id]), int(matching.class_starts[class_id + 1]))
        kept = ~matching.ignored[row, run]
        right = matching.true_positive[row, run]
        detections[class_id] = _count_at_least(matching.scores[run][kept], confidences)
        true_positives[class_id] = _count_at_least(matching.scores[run][right], confidences)
    return ConfidenceCurves(
        float(matching.iou_thresholds[row]), confidences, true_positives, detections, matching.num_positives
    )


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Confidence against the share of right detections, in bins of equal width (reliability diagram)."""

    edges: FloatArray  # (bins + 1,)
    counts: IntArray  # (bins,)
    confidence: FloatArray  # (bins,): mean score, nan in an empty bin
    accuracy: FloatArray  # (bins,): share of true positives, nan in an empty bin
    expected_error: float  # mean of |accuracy - confidence|, weighted by counts (Guo et al. 2017, eq. 3)


def calibration(
    matching: Matching, iou: float = 0.5, *, num_bins: int = 10, min_confidence: float = 0.05
) -> Calibration:
    """Reliability of the scores at one IoU; detections below ``min_confidence`` are a by-product of low thresholds."""
    row = matching.threshold_index(iou)
    kept = ~matching.ignored[row] & (matching.scores >= min_confidence)
    scores, right = matching.scores[kept], matching.true_positive[row][kept]
    edges = np.linspace(0.0, 1.0, num_bins + 1)
    bins = np.clip(np.digitize(scores, edges) - 1, 0, num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins).astype(np.int64)
    filled = np.where(counts > 0, counts, np.nan)
    confidence = np.bincount(bins, scores, num_bins) / filled
    accuracy = np.bincount(bins, right, num_bins) / filled
    gaps = np.nan_to_num(np.abs(accuracy - confidence)) * counts
    return Calibration(edges, counts, confidence, accuracy, float(gaps.sum() / counts.sum()) if len(scores) else np.nan)


def _count_at_least(falling_scores: FloatArray, confidences: FloatArray) -> IntArray:
    return (len(falling_scores) - np.searchsorted(falling_scores[::-1], confidences, side="left")).astype(np.int64)


def _precision(true_positives: IntArray, detections: IntArray) -> FloatArray:
    return np.where(detections > 0, true_positives / np.maximum(detections, 1), 1.0)


def _recall(true_positives: IntArray, num_positives: IntArray) -> FloatArray:
    return np.where(num_positives > 0, true_positives / np.maximum(num_positives, 1), np.nan)


def _f1(true_positives: IntArray, detections: IntArray, num_positives: IntArray) -> FloatArray:
    f1 = 2 * true_positives / np.maximum(detections + num_positives, 1)  # = 2PR / (P + R), also where one is 0
    return np.where(num_positives > 0, f1, np.nan)
