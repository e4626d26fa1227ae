"""Two networks that should be one: raw maps, decoded boxes and final detections compared. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import numpy.typing as npt

from scaledyolo.arch.ops import Detect
from scaledyolo.artefact import ModelFacts
from scaledyolo.boxes import cxcywh_to_xyxy, iou_matrix
from scaledyolo.postprocess import Candidates
from scaledyolo.postprocess.decode import decode_all
from scaledyolo.weights import Array

ROWS_COMPARED = 200  # best rows of an image whose boxes are compared


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far an artefact may be from its network. Errors of maps are in standard deviations of the expected map."""

    max_error: float
    rms_error: float
    box_iou: float  # a row matches if its boxes overlap by at least this,
    score: float  # if its scores differ by at most this
    matched: float  # share of rows that must match
    ap_points: float  # percentage points of AP that may be lost or won
    may_win: bool = False  # whether more may be won: errors at random also do so


# Sums in another order differ in the last bits; 1e-3 is a hundred times that and far below any real difference.
TOLERANCES = {
    "float32": Tolerance(max_error=1e-3, rms_error=1e-4, box_iou=0.99, score=1e-3, matched=1.0, ap_points=0.1),
    "float16": Tolerance(max_error=0.1, rms_error=0.01, box_iou=0.95, score=0.02, matched=0.99, ap_points=0.5),
    "bfloat16": Tolerance(max_error=0.6, rms_error=0.04, box_iou=0.80, score=0.08, matched=0.97, ap_points=1.0),
    # Whether 8 bits are good enough is for AP to say; these bounds are there to notice another network.
    "int8": Tolerance(max_error=8.0, rms_error=0.5, box_iou=0.5, score=0.3, matched=0.7, ap_points=1.0, may_win=True),
}


@dataclass(frozen=True, slots=True)
class MapErrors:
    """Differences of one raw map, and its spread (standard deviation), which gives them a scale."""

    output: str
    max_absolute: float
    mean_absolute: float
    spread: float
    max_relative: float  # maximum over spread
    rms_relative: float  # root mean square over spread

    def within(self, tolerance: Tolerance) -> bool:
        """Whether both relative errors are small enough; not-a-number never is."""
        return self.max_relative <= tolerance.max_error and self.rms_relative <= tolerance.rms_error


@dataclass(frozen=True, slots=True)
class BoxErrors:
    """Boxes of two networks matched one to one."""

    compared: int
    matched: int
    worst_iou: float
    worst_score: float

    def within(self, tolerance: Tolerance) -> bool:
        """Whether enough of them match."""
        return self.matched >= tolerance.matched * self.compared


_COMPARED_FACTS = {
    "category_ids": "category ids differ",
    "resize": "images are brought to size in another way",
    "channels": "channels of the input differ",
    "strides": "strides of the heads differ",
}


def compare_facts(found: ModelFacts, expected: ModelFacts) -> tuple[str, ...]:
    """Where the metadata of an artefact contradicts its model, in words; empty where it does not.

    Maps and boxes do not show these: both sides are shown the same canvas, and a class is a number to them. Heads and
    anchors are left out, because boxes do show them.
    """
    differences = []
    if found.class_names != expected.class_names:
        pairs = zip_longest(found.class_names, expected.class_names, fillvalue="nothing")
        row, (here, there) = next((row, pair) for row, pair in enumerate(pairs) if pair[0] != pair[1])
        differences.append(f"class names differ: class {row} is {here!r} in the artefact, {there!r} in the model")
    for what, words in _COMPARED_FACTS.items():
        here, there = getattr(found, what), getattr(expected, what)
        if here != there:
            differences.append(f"{words}: {here} in the artefact, {there} in the model")
    return tuple(differences)


def compare_map(output: str, found: Array, expected: Array) -> MapErrors:
    """Differences of one raw map; infinite where the shapes differ or a value is not a number."""
    spread = float(np.std(expected, dtype=np.float64)) or 1.0
    if found.shape != expected.shape or not np.isfinite(found).all():
        return MapErrors(output, np.inf, np.inf, spread, np.inf, np.inf)
    error = np.abs(found.astype(np.float64) - expected)
    rms = float(np.sqrt(np.mean(np.square(error))))
    largest = float(error.max(initial=0))
    return MapErrors(output, largest, float(error.mean()), spread, largest / spread, rms / spread)


def compare_boxes(
    found: Sequence[Array],
    found_detects: Sequence[Detect],
    expected: Sequence[Array],
    expected_detects: Sequence[Detect],
    size: tuple[int, int],
    tolerance: Tolerance,
) -> BoxErrors:
    """Decode both sets of raw maps, each by its own heads, and compare row by row.

    A row is an anchor in a cell, so it is known which box belongs to which; of each image the rows with the best
    expected scores are compared.

    Args:
        found: raw maps of the artefact, (batch, channels, height, width) each.
        found_detects: what its metadata says about them.
        expected: raw maps of the network.
        expected_detects: its heads.
        size: height and width of the input in pixels.
        tolerance: what counts as a match.
    """
    if [item.shape for item in found] != [item.shape for item in expected]:
        return BoxErrors(compared=1, matched=0, worst_iou=0.0, worst_score=1.0)
    rows = _best_rows(decode_all(expected, expected_detects, size), decode_all(found, found_detects, size))
    wanted, given = rows
    overlap = _pairwise_iou(cxcywh_to_xyxy(wanted[:, :4]), cxcywh_to_xyxy(given[:, :4]))
    # All classes are compared, not only the best: where two are nearly equal, either may win.
    difference = np.abs(wanted[:, 4:5] * wanted[:, 5:] - given[:, 4:5] * given[:, 5:]).max(axis=1)
    matches = (overlap >= tolerance.box_iou) & (difference <= tolerance.score)
    return BoxErrors(len(wanted), int(matches.sum()), float(overlap.min()), float(difference.max()))


def _best_rows(expected: Array, found: Array) -> tuple[Array, Array]:
    """The rows (n, 5 + classes) of both whose expected score is among the best of its image."""
    scores = expected[..., 4] * expected[..., 5:].max(axis=-1)
    count = min(ROWS_COMPARED, scores.shape[1])
    best = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    image = np.arange(len(best))[:, None]
    width = expected.shape[-1]
    return expected[image, best].reshape(-1, width), found[image, best].reshape(-1, width)


def _pairwise_iou(first_xyxy: Array, second_xyxy: Array) -> npt.NDArray[np.float64]:
    """IoU (n,) of the boxes of each row; 0 where one is not finite."""
    top_left = np.maximum(first_xyxy[:, :2], second_xyxy[:, :2]).astype(np.float64)
    sides = np.clip(np.minimum(first_xyxy[:, 2:], second_xyxy[:, 2:]) - top_left, 0, None)
    shared = sides.prod(axis=1)
    area, other = ((box[:, 2:] - box[:, :2]).astype(np.float64).prod(axis=1) for box in (first_xyxy, second_xyxy))
    overlap: npt.NDArray[np.float64] = np.nan_to_num(shared / np.maximum(area + other - shared, 1e-12), nan=0.0)
    return overlap


def compare_detections(found: Candidates, expected: Candidates, tolerance: Tolerance) -> BoxErrors:
    """Match the final detections of one image one to one: best scores first, same class, greatest overlap.

    What only one side has is no mismatch where the other had it within the tolerance of the lowest score: it fell to
    the other side of the threshold, or of the limit on their number.
    """
    lowest = min((float(side.scores.min()) for side in (found, expected) if len(side)), default=0.0)
    free = np.ones(len(found), bool)
    both = len(found) and len(expected)
    overlaps = np.asarray(iou_matrix(expected.boxes_xyxy, found.boxes_xyxy)) if both else None
    matched, compared, worst_iou, worst_score = 0, 0, 1.0, 0.0
    for row in range(len(expected)):
        partner = _partner(row, overlaps, free, found, expected)
        if partner is None:
            compared += int(expected.scores[row] > lowest + tolerance.score)
            continue
        assert overlaps is not None
        free[partner] = False
        overlap, difference = float(overlaps[row, partner]), abs(float(expected.scores[row] - found.scores[partner]))
        worst_iou, worst_score = min(worst_iou, overlap), max(worst_score, difference)
        compared += 1
        matched += int(overlap >= tolerance.box_iou and difference <= tolerance.score)
    compared += int((free & (found.scores > lowest + tolerance.score)).sum())
    return BoxErrors(compared, matched, worst_iou, worst_score)


def _partner(
    row: int, overlaps: npt.NDArray[np.floating] | None, free: npt.NDArray[np.bool_], found: Candidates,
    expected: Candidates,
) -> int | None:  # fmt: skip
    if overlaps is None:
        return None
    allowed = free & (found.class_ids == expected.class_ids[row]) & (overlaps[row] > 0)
    if not allowed.any():
        return None
    return int(np.argmax(np.where(allowed, overlaps[row], -1.0)))
