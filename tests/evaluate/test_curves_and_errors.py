"""Curves, operating points, calibration, confusion matrix, error types, buckets: by hand and by other programs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import supervision as sv
from hypothesis import given, settings
from hypothesis import strategies as st

from scaledyolo.errors import UsageError
from scaledyolo.evaluate.arrays import GroundTruth, Predictions, ground_truth_from_lists, predictions_from_lists
from scaledyolo.evaluate.breakdown import SIZE_BUCKETS, breakdown_by_aspect, breakdown_by_size
from scaledyolo.evaluate.coco import coco_metrics
from scaledyolo.evaluate.confusion import confusion_matrix
from scaledyolo.evaluate.curves import calibration, confidence_curves
from scaledyolo.evaluate.error_types import ERRORS, ErrorType, error_types
from scaledyolo.evaluate.matching import match
from scaledyolo.evaluate.protocols import COCO, DARKNET_MAP, TRAINING, protocol

NAMES = ["cat", "dog"]


def one_image(
    objects: list[tuple], detections: list[tuple], *, crowd: list[bool] | None = None
) -> tuple[GroundTruth, Predictions]:
    """Objects (class, box) and detections (class, score, box) of a single image."""
    truth = ground_truth_from_lists(
        NAMES, [(200, 200)], [[box for _, box in objects]], [[k for k, _ in objects]],
        crowd=None if crowd is None else [crowd],
    )  # fmt: skip
    predictions = predictions_from_lists(
        [[box for *_, box in detections]], [[s for _, s, _ in detections]], [[k for k, *_ in detections]], num_classes=2
    )
    return truth, predictions


def test_each_error_type_is_recognised() -> None:
    objects = [
        (0, (0, 0, 40, 40)),
        (0, (60, 0, 100, 40)),
        (1, (120, 0, 160, 40)),
        (1, (0, 100, 40, 140)),
        (0, (100, 100, 140, 140)),
    ]
    detections = [
        (0, 0.95, (0, 0, 40, 40)),  # correct
        (0, 0.90, (2, 0, 42, 40)),  # duplicate of it
        (0, 0.85, (60, 0, 80, 20)),  # localisation: IoU 0.25
        (0, 0.80, (120, 0, 160, 40)),  # confusion: a dog called cat
        (0, 0.75, (0, 100, 20, 120)),  # both: a quarter of a dog called cat
        (1, 0.70, (170, 170, 190, 190)),  # background
        (0, 0.10, (100, 100, 140, 140)),  # correct, but below the confidence shown
    ]
    report = error_types(*one_image(objects, detections))
    found = [ErrorType(kind) for kind in report.kinds[np.argsort(report.rows)]]
    assert found == [
        ErrorType.CORRECT, ErrorType.DUPLICATE, ErrorType.LOCALISATION, ErrorType.CONFUSION, ErrorType.BOTH,
        ErrorType.BACKGROUND, ErrorType.CORRECT,
    ]  # fmt: skip
    assert report.counts == {**dict.fromkeys(ERRORS, 1), ErrorType.MISSED: 2}
    assert report.num_correct == 1
    assert report.missed.tolist() == [3, 4]


def test_delta_ap_is_the_ap_of_the_mended_detections() -> None:
    """Mend by hand, evaluate again with the COCO program, compare."""
    objects = [(0, (0, 0, 40, 40)), (0, (60, 0, 100, 40)), (1, (120, 0, 160, 40)), (1, (0, 100, 40, 140))]
    right, loc = (0, 0.6, (0, 0, 40, 40)), (0, 0.9, (60, 0, 80, 20))
    confused, background = (0, 0.8, (120, 0, 160, 40)), (1, 0.7, (170, 170, 190, 190))
    report = error_types(*one_image(objects, [right, loc, confused, background]))

    def ap50(*detections: tuple, among: list[tuple] = objects) -> float:
        return coco_metrics(*one_image(among, list(detections))).ap50

    base = ap50(right, loc, confused, background)
    assert report.ap == pytest.approx(base)
    mended = {
        ErrorType.LOCALISATION: ap50(right, (0, 0.9, (60, 0, 100, 40)), confused, background),
        ErrorType.CONFUSION: ap50(right, loc, (1, 0.8, (120, 0, 160, 40)), background),
        ErrorType.BACKGROUND: ap50(right, loc, confused),
        ErrorType.DUPLICATE: base,
        ErrorType.BOTH: base,
        ErrorType.MISSED: ap50(right, loc, confused, background, among=objects[:3]),
    }
    for kind, expected in mended.items():
        assert report.delta_ap[kind] == pytest.approx(expected - base), kind


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_error_counts_add_up(scene: Callable, seed: int) -> None:
    truth, predictions = scene(seed, num_images=6)
    report = error_types(truth, predictions, confidence=0.3)
    shown = predictions.above(0.3)
    errors = sum(count for kind, count in report.counts.items() if kind is not ErrorType.MISSED)
    ignored = np.count_nonzero((report.kinds == ErrorType.IGNORED) & (predictions.scores[report.rows] >= 0.3))
    assert errors + report.num_correct + ignored == len(shown)
    assert report.counts[ErrorType.MISSED] + report.num_correct <= report.num_objects
    assert min(report.delta_ap.values()) >= -1e-9 or report.ap > 0
    assert np.isnan(report.ap) or report.ap == pytest.approx(coco_metrics(truth, predictions).ap50)


def test_confusion_matrix_by_hand() -> None:
    objects = [(0, (0, 0, 40, 40)), (1, (60, 0, 100, 40)), (1, (120, 0, 160, 40))]
    detections = [
        (0, 0.9, (0, 0, 40, 40)),
        (0, 0.8, (1, 0, 41, 40)),  # second on the same cat: background
        (0, 0.7, (60, 0, 100, 40)),  # dog called cat
        (1, 0.2, (120, 0, 160, 40)),  # too unsure: that dog is missed
    ]
    matrix = confusion_matrix(*one_image(objects, detections))
    assert matrix.counts.tolist() == [[1, 0, 0], [1, 0, 1], [1, 0, 0]]
    (worst,) = matrix.largest_confusions()
    assert (worst.true_name, worst.predicted_name, worst.count, worst.share) == ("dog", "cat", 1, 0.5)
    in_crowd = one_image(
        [(0, (0, 0, 100, 100))], [(0, 0.9, (10, 10, 30, 30)), (1, 0.9, (10, 10, 30, 30))], crowd=[True]
    )
    assert confusion_matrix(*in_crowd).counts.tolist() == [[0, 0, 0], [0, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize("seed", range(5))
def test_confusion_matrix_equals_supervision(seed: int) -> None:
    """On scenes where pairing is unambiguous (objects apart from each other), any sound pairing gives one answer."""
    rng = np.random.default_rng(seed)
    num_images, per_image = 8, 9
    grid = np.array([(x, y, x + 40, y + 40) for x in (0, 100, 200) for y in (0, 100, 200)], dtype=float)
    truth_boxes, truth_ids, boxes, scores, ids = [], [], [], [], []
    for _ in range(num_images):
        there, seen = rng.random(per_image) < 0.6, rng.random(per_image) < 0.6
        truth_boxes.append(grid[there])
        truth_ids.append(rng.integers(0, 3, there.sum()))
        boxes.append(grid[seen] + rng.uniform(-4, 4, (int(seen.sum()), 4)))
        scores.append(rng.random(seen.sum()))
        ids.append(rng.integers(0, 3, seen.sum()))
    names = ["a", "b", "c"]
    truth = ground_truth_from_lists(names, [(300, 300)] * num_images, truth_boxes, truth_ids)
    ours = confusion_matrix(truth, predictions_from_lists(boxes, scores, ids, num_classes=3))
    theirs = sv.ConfusionMatrix.from_detections(
        predictions=[
            sv.Detections(b.astype(np.float32), confidence=s.astype(np.float32), class_id=k)
            for b, s, k in zip(boxes, scores, ids, strict=True)
        ],
        targets=[sv.Detections(b.astype(np.float32), class_id=k) for b, k in zip(truth_boxes, truth_ids, strict=True)],
        classes=names, conf_threshold=0.25, iou_threshold=0.45,
    )  # fmt: skip
    np.testing.assert_array_equal(ours.counts, theirs.matrix)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), confidence=st.floats(0, 1))
def test_confusion_matrix_rows_count_objects(scene: Callable, seed: int, confidence: float) -> None:
    truth, predictions = scene(seed, num_images=5)
    counts = confusion_matrix(truth, predictions, confidence=confidence).counts
    np.testing.assert_array_equal(counts[:-1].sum(axis=1), truth.class_counts())
    assert counts[:, :-1].sum() <= len(predictions.above(confidence))
    assert counts[-1, -1] == 0


def test_curves_count_what_they_say(scene: Callable) -> None:
    truth, predictions = scene(7, crowd_share=0.0)
    curves = confidence_curves(match(truth, predictions, max_detections=10_000))
    for confidence in (0.0, 0.29, 0.5, 0.83):
        fewer = match(truth, predictions.above(confidence), max_detections=10_000)
        right = int(fewer.true_positive[0].sum())
        point = curves.at(confidence)
        assert point.precision == pytest.approx(right / len(predictions.above(confidence)))
        assert point.recall == pytest.approx(right / len(truth.image_index))
        assert point.f1 == pytest.approx(2 * point.precision * point.recall / (point.precision + point.recall))
    assert (curves.at(1.0).precision, curves.at(1.0).recall) == (1.0, 0.0)
    assert np.all(np.diff(curves.overall_recall) <= 0)
    assert np.isnan(curves.recall[-1]).all()  # a class without objects
    np.testing.assert_allclose(curves.mean_f1, np.nanmean(curves.f1[:-1], axis=0))


def test_operating_points() -> None:
    objects = [(0, (60 * i, 0, 60 * i + 40, 40)) for i in range(3)]
    nothing = (150, 150, 190, 190)
    detections = [
        (0, 0.9, objects[0][1]),
        (0, 0.8, nothing),
        (0, 0.6, objects[1][1]),
        (0, 0.3, objects[2][1]),
        (0, 0.1, nothing),
    ]
    curves = confidence_curves(match(*one_image(objects, detections)))
    best = curves.best_f1()
    assert (best.confidence, best.precision, best.recall) == (pytest.approx(0.101), 0.75, 1.0)
    assert best.f1 == pytest.approx(6 / 7)
    assert curves.best_f1(class_id=0) == best
    exact = curves.for_precision(1.0)
    assert exact is not None
    assert (exact.confidence, exact.recall) == (pytest.approx(0.801), pytest.approx(1 / 3))
    two_thirds = curves.for_recall(0.6)
    assert two_thirds is not None
    assert two_thirds.confidence == pytest.approx(0.6)
    assert curves.for_recall(1.1) is None
    assert curves.for_precision(0.5, class_id=1) is None
    with pytest.raises(UsageError, match="at least 2"):
        confidence_curves(match(*one_image(objects, detections)), num_confidences=1)


def test_honest_scores_are_calibrated_and_inflated_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    scores = rng.uniform(0.05, 1, 4000)
    right = rng.random(4000) < scores
    boxes = np.where(right[:, None], (0, 0, 10, 10), (50, 50, 60, 60)).astype(float)
    sizes = [(100, 100)] * len(scores)
    truth = ground_truth_from_lists(["a"], sizes, [[[0, 0, 10, 10]]] * len(scores), [[0]] * len(scores))
    honest = predictions_from_lists(boxes[:, None], scores[:, None], np.zeros((len(scores), 1)), num_classes=1)
    inflated = predictions_from_lists(
        boxes[:, None], np.sqrt(scores)[:, None], np.zeros((len(scores), 1)), num_classes=1
    )
    assert calibration(match(truth, honest)).expected_error < 0.03
    result = calibration(match(truth, inflated))
    assert result.expected_error == pytest.approx(np.mean(np.sqrt(scores) - scores), abs=0.03)
    assert result.counts.sum() == 4000


def test_buckets_split_the_objects(scene: Callable) -> None:
    truth, predictions = scene(8)
    for buckets in (breakdown_by_size(truth, predictions), breakdown_by_aspect(truth, predictions)):
        assert sum(bucket.num_objects for bucket in buckets) == int((~truth.crowd).sum())
    medium = breakdown_by_size(truth, predictions)[2]
    assert SIZE_BUCKETS[2].name == medium.name
    assert medium.ap == pytest.approx(coco_metrics(truth, predictions).ap_medium, abs=1e-9)


def test_protocols() -> None:
    assert (COCO.confidence, COCO.nms_iou, COCO.max_detections, COCO.scored_detections) == (0.001, 0.65, 300, 100)
    assert (TRAINING.confidence, TRAINING.nms_iou) == (0.001, 0.6)
    assert (DARKNET_MAP.confidence, DARKNET_MAP.nms_iou, DARKNET_MAP.interpolation) == (0.005, 0.45, "area")
    assert protocol("coco") is COCO
    with pytest.raises(UsageError, match="Did you mean 'training'"):
        protocol("trainin")
