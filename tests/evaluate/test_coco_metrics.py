"""The twelve figures equal pycocotools; our matching, which everything else counts with, does too."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaledyolo.data.formats import open_dataset
from scaledyolo.errors import DataError, MissingPackageError
from scaledyolo.evaluate.arrays import Predictions, ground_truth_from_lists, predictions_from_lists
from scaledyolo.evaluate.coco import FIGURE_NAMES, RECALL_POINTS, coco_metrics
from scaledyolo.evaluate.matching import average_precision, match, recall_points_reached, weighted_average_precision
from scaledyolo.evaluate.run import ground_truth

SCENES: dict[str, dict[str, Any]] = {
    "plain": {"crowd_share": 0.0},
    "crowds": {"crowd_share": 0.4},
    "tied scores": {"score_decimals": 1},
    "all scores equal": {"score_decimals": 0},
    "over 100 detections of a class": {"num_images": 3, "num_classes": 2, "detections_per_object": 40.0},
    "one class": {"num_classes": 1},
    "mostly empty images": {"objects_per_image": 1, "false_per_image": 0, "num_images": 20},
    "nothing but false alarms": {"objects_per_image": 0},
}


def defined(figures: np.ndarray) -> np.ndarray:
    """pycocotools' -1 as nan."""
    return np.where(figures < 0, np.nan, figures)


@pytest.mark.parametrize("settings_", SCENES.values(), ids=SCENES.keys())
@pytest.mark.parametrize("seed", [1, 2])
def test_figures_equal_pycocotools(scene: Callable, judge: Callable, settings_: dict[str, Any], seed: int) -> None:
    truth, predictions = scene(seed, **settings_)
    metrics = coco_metrics(truth, predictions)
    np.testing.assert_allclose(list(metrics.figures().values()), defined(judge(truth, predictions)), rtol=0, atol=1e-9)
    assert tuple(metrics.figures()) == FIGURE_NAMES


@pytest.mark.parametrize("settings_", SCENES.values(), ids=SCENES.keys())
def test_own_matching_equals_pycocotools(scene: Callable, judge: Callable, settings_: dict[str, Any]) -> None:
    truth, predictions = scene(3, **settings_)
    expected = defined(judge(truth, predictions))
    precision = average_precision(match(truth, predictions))
    present = ~np.isnan(precision[0])
    if not present.any():
        assert np.isnan(expected[0])
        return
    found = [precision[:, present].mean(), precision[0, present].mean(), precision[5, present].mean()]
    np.testing.assert_allclose(found, expected[:3], rtol=0, atol=1e-9)


@pytest.mark.parametrize(("low", "high", "figure"), [(0, 32, 3), (32, 96, 4), (96, 1e5, 5)])
@pytest.mark.parametrize("seed", [4, 5])
def test_bucketed_matching_equals_pycocotools_area_ranges(
    scene: Callable, judge: Callable, low: float, high: float, figure: int, seed: int
) -> None:
    truth, predictions = scene(seed)
    detection_areas = np.prod(predictions.boxes_xyxy[:, 2:] - predictions.boxes_xyxy[:, :2], axis=1)
    matching = match(
        truth,
        predictions,
        objects_counted=(truth.areas >= low**2) & (truth.areas <= high**2),
        detections_counted=(detection_areas >= low**2) & (detection_areas <= high**2),
    )
    expected = defined(judge(truth, predictions))[figure]
    np.testing.assert_allclose(np.nanmean(average_precision(matching)), expected, rtol=0, atol=1e-9)


@pytest.mark.shared
def test_real_annotations_equal_pycocotools(shared: Path, judge: Callable) -> None:
    truth = ground_truth(open_dataset(shared / "data/coco_mini", "val", bad="skip"))
    assert (truth.num_images, len(truth.image_index), int(truth.crowd.sum())) == (328, 2647, 28)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, len(truth.image_index), 8000)
    boxes = truth.boxes_xyxy[rows]
    boxes = boxes + rng.normal(0, 0.1, boxes.shape) * np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    boxes = np.concatenate([boxes.reshape(-1, 2, 2).min(axis=1), boxes.reshape(-1, 2, 2).max(axis=1)], axis=1)
    class_ids = np.where(rng.random(len(rows)) < 0.1, rng.integers(0, 80, len(rows)), truth.class_ids[rows])
    predictions = Predictions(328, 80, truth.image_index[rows], boxes, rng.random(len(rows)).round(2), class_ids)
    expected = judge(truth, predictions)
    metrics = coco_metrics(truth, predictions)
    np.testing.assert_allclose(list(metrics.figures().values()), expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(np.nanmean(average_precision(match(truth, predictions))), expected[0], atol=1e-9)


# Training spec 5.4: flags of the detections by falling score, objects, pycocotools' figure, exact area under the curve.
GOLDENS = [
    ((1, 0, 1), 4, 0.422442, 0.416667),
    ((1,), 2, 0.504950, 0.500),
    ((0, 1), 1, 0.500000, 0.500),
    ((1, 1, 0, 1, 0), 5, 0.554455, 0.550),
]


@pytest.mark.parametrize(("flags", "num_objects", "coco", "area"), GOLDENS)
def test_average_precision_goldens(flags: tuple[int, ...], num_objects: int, coco: float, area: float) -> None:
    found = np.array([flags], dtype=bool)
    arguments = found, np.zeros_like(found), np.ones((len(flags), 1)), np.array([float(num_objects)])
    assert weighted_average_precision(*arguments)[0, 0] == pytest.approx(coco, abs=5e-7)
    assert weighted_average_precision(*arguments, "area")[0, 0] == pytest.approx(area, abs=5e-7)
    assert exact_101_point(flags, num_objects) == pytest.approx(coco, abs=5e-7)


def exact_101_point(flags: tuple[int, ...], num_objects: int) -> float:
    """The definition, word by word: mean over recalls 0, .01, ... 1 of the best precision at that recall or beyond."""
    points = [
        (sum(flags[: k + 1]) / num_objects, sum(flags[: k + 1]) / (k + 1)) for k in range(len(flags))
    ]  # (recall, precision) after k + 1 detections
    best = [max((p for r, p in points if r >= i / 100 - 1e-12), default=0.0) for i in range(101)]
    return sum(best) / 101


@settings(max_examples=60, deadline=None)
@given(flags=st.lists(st.booleans(), min_size=1, max_size=30), extra=st.integers(0, 10))
def test_average_precision_equals_its_definition(flags: list[bool], extra: int) -> None:
    num_objects = sum(flags) + extra or 1
    found = np.array([flags])
    value = weighted_average_precision(found, ~found & False, np.ones((len(flags), 1)), np.array([float(num_objects)]))
    assert 0 <= value[0, 0] <= 1
    assert value[0, 0] == pytest.approx(exact_101_point(tuple(map(int, flags)), num_objects), abs=1 / 101 + 1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_order_of_predictions_does_not_matter(scene: Callable, seed: int) -> None:
    truth, predictions = scene(seed, num_images=5)
    shuffled = predictions.select(np.random.default_rng(seed).permutation(len(predictions)))
    first, second = (average_precision(match(truth, one)) for one in (predictions, shuffled))
    np.testing.assert_array_equal(first, second)
    assert np.all(np.isnan(first) | ((first >= 0) & (first <= 1)))
    np.testing.assert_allclose(
        list(coco_metrics(truth, shuffled).figures().values()),
        list(coco_metrics(truth, predictions).figures().values()),
        atol=1e-12,
    )


def with_one_more(predictions: Predictions, box_xyxy: list[float], score: float, class_id: int) -> Predictions:
    """The same detections and one in the first image."""
    return Predictions(
        predictions.num_images,
        predictions.num_classes,
        np.append(predictions.image_index, 0),
        np.append(predictions.boxes_xyxy, [box_xyxy], axis=0),
        np.append(predictions.scores, score),
        np.append(predictions.class_ids, class_id),
    )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_false_alarm_never_helps(scene: Callable, seed: int) -> None:
    truth, predictions = scene(seed, num_images=4)
    box, class_id = [900.0, 900, 950, 950], seed % truth.num_classes
    before = average_precision(match(truth, predictions))
    lowest = average_precision(
        match(truth, with_one_more(predictions, box, predictions.scores.min(initial=1.0) / 2, class_id))
    )
    top = average_precision(match(truth, with_one_more(predictions, box, 2.0, class_id)))
    assert not np.any(lowest > before + 1e-12)
    assert not np.any(top > before + 1e-12)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_perfect_detections_score_one(scene: Callable, seed: int) -> None:
    truth, _ = scene(seed, crowd_share=0.0)
    scores = np.linspace(1, 0.1, len(truth.image_index))
    perfect = Predictions(
        truth.num_images, truth.num_classes, truth.image_index, truth.boxes_xyxy, scores, truth.class_ids
    )
    precision = average_precision(match(truth, perfect, max_detections=1000))
    np.testing.assert_allclose(precision[~np.isnan(precision)], 1.0)


def test_recalls_meet_their_points_as_in_numpy() -> None:
    """Every recall k / n with n up to 400: some of them equal a point only up to the last bit."""
    recalls = np.array([k / n for n in range(1, 401) for k in range(n + 1)])
    expected = np.searchsorted(RECALL_POINTS, recalls, side="right")
    np.testing.assert_array_equal(recall_points_reached(recalls), expected)


def test_empty_cases() -> None:
    one_object = ground_truth_from_lists(["a", "b"], [(10, 10), (10, 10)], [[[1, 1, 5, 5]], []], [[0], []])
    no_object = ground_truth_from_lists(["a", "b"], [(10, 10), (10, 10)], [[], []], [[], []])
    no_image = ground_truth_from_lists(["a", "b"], [], [], [])
    nothing = predictions_from_lists([[], []], [[], []], [[], []], num_classes=2)
    something = predictions_from_lists([[[1, 1, 5, 5]], []], [[0.5], []], [[0], []], num_classes=2)
    missed = coco_metrics(one_object, nothing)
    assert (missed.ap, missed.ar_100) == (0.0, 0.0)
    np.testing.assert_array_equal(missed.class_ap, [0.0, np.nan])
    found = coco_metrics(one_object, something)
    assert found.ap == pytest.approx(1.0)
    assert np.isnan(found.ap_large)
    for predictions in (nothing, something):
        assert np.isnan(list(coco_metrics(no_object, predictions).figures().values())).all()
        assert np.isnan(average_precision(match(no_object, predictions))).all()
    none = predictions_from_lists([], [], [], num_classes=2)
    assert np.isnan(list(coco_metrics(no_image, none).figures().values())).all()


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def refuse(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("faster_coco_eval"):
            raise ImportError(name)
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    truth = ground_truth_from_lists(["a"], [(10, 10)], [[]], [[]])
    with pytest.raises(MissingPackageError, match=r"scaledyolo\[train\]"):
        coco_metrics(truth, predictions_from_lists([[]], [[]], [[]], num_classes=1))


def test_bad_arrays_are_refused_in_one_sentence() -> None:
    with pytest.raises(DataError, match="class id 3, allowed are 0 to 1"):
        ground_truth_from_lists(["a", "b"], [(10, 10)], [[[1, 1, 5, 5]]], [[3]])
    with pytest.raises(DataError, match="box 0 of the predictions is not finite"):
        predictions_from_lists([[[1, 1, 5, np.nan]]], [[0.5]], [[0]], num_classes=1)
    with pytest.raises(DataError, match="2 scores were given for 1 predictions"):
        predictions_from_lists([[[1, 1, 5, 5]]], [[0.5, 0.4]], [[0]], num_classes=1)
    truth = ground_truth_from_lists(["a"], [(10, 10)], [[]], [[]])
    with pytest.raises(DataError, match="1 images but the predictions were made for 2"):
        match(truth, predictions_from_lists([[], []], [[], []], [[], []], num_classes=1))
