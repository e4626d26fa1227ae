"""Confusion matrix: which class was called what, and what was seen where nothing is or not seen where something is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from scaledyolo.evaluate.arrays import BoolArray, FloatArray, GroundTruth, IntArray, Predictions, check_pair
from scaledyolo.evaluate.matching import coco_overlaps


@dataclass(frozen=True, slots=True)
class Confusion:
    """Objects of one class that were called another."""

    true_name: str
    predicted_name: str
    count: int
    share: float  # of the objects of the true class


@dataclass(frozen=True, slots=True, eq=False)
class ConfusionMatrix:
    """Counts (K + 1, K + 1): rows are true classes, columns predicted ones; the last of both is background."""

    class_names: tuple[str, ...]
    counts: IntArray
    confidence: float
    iou: float

    @property
    def row_shares(self) -> FloatArray:
        """Each row divided by its sum; the row of a class without objects is 0."""
        totals = self.counts.sum(axis=1, keepdims=True)
        shares: FloatArray = self.counts / np.maximum(totals, 1)
        return shares

    def largest_confusions(self, limit: int = 10) -> tuple[Confusion, ...]:
        """The most frequent mix-ups between two classes, background not among them."""
        inner = self.counts[:-1, :-1].copy()
        np.fill_diagonal(inner, 0)
        order = np.argsort(-inner, axis=None, kind="stable")[:limit]
        pairs = [divmod(int(place), inner.shape[1]) for place in order]
        shares = self.row_shares
        return tuple(
            Confusion(self.class_names[t], self.class_names[p], int(inner[t, p]), float(shares[t, p]))
            for t, p in pairs
            if inner[t, p] > 0
        )


def confusion_matrix(
    truth: GroundTruth, predictions: Predictions, *, confidence: float = 0.25, iou: float = 0.45
) -> ConfusionMatrix:
    """Pair detections and objects by overlap alone, then look at the classes (defaults: training spec 5.4).

    Detections with at least ``confidence`` and objects that overlap by more than ``iou`` are paired one to one, largest
    overlap first (of equals, higher score first). What is left over counts as background on the other side. Crowds are
    no objects here, and a left-over detection that lies by more than ``iou`` in a crowd of its class is not counted.
    """
    kept = predictions.above(confidence)
    num_classes = truth.num_classes
    counts = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    for detections, objects in per_image(truth, kept):
        crowd = truth.crowd[objects]
        overlaps = coco_overlaps(kept.boxes_xyxy[detections], truth.boxes_xyxy[objects], crowd)
        detected, called = _pair(overlaps[:, ~crowd], kept.scores[detections], iou)
        true_classes, predicted_classes = truth.class_ids[objects[~crowd]], kept.class_ids[detections]
        np.add.at(counts, (true_classes[called], predicted_classes[detected]), 1)
        missed = np.setdiff1d(np.arange(len(true_classes)), called)
        np.add.at(counts[:, num_classes], true_classes[missed], 1)
        same_class = predicted_classes[:, None] == truth.class_ids[objects[crowd]]
        excused = ((overlaps[:, crowd] > iou) & same_class).any(axis=1)
        excused[detected] = True
        np.add.at(counts[num_classes], predicted_classes[~excused], 1)
    return ConfusionMatrix(truth.class_names, counts, confidence, iou)


def per_image(truth: GroundTruth, predictions: Predictions) -> Iterator[tuple[IntArray, IntArray]]:
    """Rows of the detections and of the objects of each image, in order of images."""
    check_pair(truth, predictions)
    detections, objects = (
        _rows_by_image(index, truth.num_images) for index in (predictions.image_index, truth.image_index)
    )
    yield from zip(detections, objects, strict=True)


def _rows_by_image(image_index: IntArray, num_images: int) -> list[IntArray]:
    rows = np.argsort(image_index, kind="stable")
    starts = np.searchsorted(image_index[rows], np.arange(num_images + 1))
    return [rows[start:stop] for start, stop in itertools.pairwise(starts)]


def _pair(overlaps: FloatArray, scores: FloatArray, iou: float) -> tuple[IntArray, IntArray]:
    """One-to-one pairs (detections, objects) with more than ``iou``, largest overlap first."""
    detections, objects = np.nonzero(overlaps > iou)
    order = np.lexsort((-scores[detections], -overlaps[detections, objects]))
    free_detection: BoolArray = np.ones(overlaps.shape[0], dtype=bool)
    free_object: BoolArray = np.ones(overlaps.shape[1], dtype=bool)
    pairs = []
    for detection, target in zip(detections[order].tolist(), objects[order].tolist(), strict=True):
        if free_detection[detection] and free_object[target]:
            free_detection[detection] = free_object[target] = False
            pairs.append((detection, target))
    paired = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return paired[:, 0], paired[:, 1]
