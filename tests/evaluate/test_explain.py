"""Near-zero figures: each mistake that is made on purpose gets its own explanation, a good model none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from scaledyolo.data.annotations import AnnotationBuilder
from scaledyolo.data.dataset import Dataset, in_class_order
from scaledyolo.data.problems import RawBox
from scaledyolo.errors import DataError
from scaledyolo.evaluate.arrays import GroundTruth, Predictions
from scaledyolo.evaluate.explain import explain_low_figures, without_classes


@pytest.fixture
def truth() -> GroundTruth:
    corners = np.array([[10.0, 10], [60, 20], [30, 70]])
    return GroundTruth(
        class_names=("cat", "dog"),
        image_ids=(1, 2),
        image_sizes=np.full((2, 2), 100),
        image_index=np.array([0, 0, 1]),
        boxes_xyxy=np.concatenate([corners, corners + 20], axis=1),
        class_ids=np.array([0, 1, 1]),
        crowd=np.zeros(3, bool),
        areas=np.full(3, 400.0),
        category_ids=(7, 9),
    )


def found_like(truth: GroundTruth) -> Predictions:
    return Predictions(2, 2, truth.image_index, truth.boxes_xyxy, np.linspace(0.9, 0.5, 3), truth.class_ids)


def test_good_figures_need_no_reason(truth: GroundTruth) -> None:
    assert explain_low_figures(truth, found_like(truth), 0.4) is None


def test_swapped_classes(truth: GroundTruth) -> None:
    swapped = replace(found_like(truth), class_ids=1 - truth.class_ids)
    told = explain_low_figures(truth, swapped, 0.0)
    assert told is not None
    assert "AP50 1.000 when classes are left aside" in told


def test_boxes_elsewhere(truth: GroundTruth) -> None:
    moved = replace(found_like(truth), boxes_xyxy=truth.boxes_xyxy / 4)
    told = explain_low_figures(truth, moved, 0.0)
    assert told is not None
    assert "the surest of 3 detections lie on no object" in told


def test_nothing_found_and_nothing_to_find(truth: GroundTruth) -> None:
    nothing = found_like(truth).above(2.0)
    assert "finds nothing at all" in str(explain_low_figures(truth, nothing, 0.0))
    crowds = replace(truth, crowd=np.ones(3, bool))
    assert "not a single box to find" in str(explain_low_figures(crowds, found_like(truth), float("nan")))


def test_without_classes_keeps_the_boxes(truth: GroundTruth) -> None:
    one, found = without_classes(truth, found_like(truth))
    assert (one.num_classes, found.num_classes, set(one.class_ids), set(found.class_ids)) == (1, 1, {0}, {0})
    np.testing.assert_array_equal(one.boxes_xyxy, truth.boxes_xyxy)


def test_classes_in_another_order_are_the_same_classes() -> None:
    builder = AnnotationBuilder()
    builder.add("a.jpg", 10, 10, [RawBox(0, 0, 4, 4, class_id, "") for class_id in (0, 2, 1)])
    dataset = Dataset(builder.build(), ("a", "b", "c"), (10, 20, 30))
    other = in_class_order(dataset, ("c", "a", "b"))
    assert [other.names[class_id] for class_id in other.annotations.class_ids] == ["a", "c", "b"]
    assert (other.names, other.original_ids) == (("c", "a", "b"), (30, 10, 20))
    with pytest.raises(DataError, match="has the classes"):
        in_class_order(dataset, ("a", "b"))
