"""Box arithmetic: published values, conversions as round trips, gradients, NumPy and torch alike."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scaledyolo import boxes

PAIRS = {
    "corner": ((0, 0, 10, 10), (5, 5, 15, 15)),
    "crossed": ((0, 0, 4, 2), (1, 0, 3, 4)),
    "apart": ((0, 0, 1, 1), (2, 2, 3, 3)),
    "usual": ((10, 20, 50, 60), (12, 18, 48, 70)),
}
# training.md 2.1: IoU, GIoU, DIoU, CIoU, IoU - (d²/c²)^0.6
GOLDEN = {
    "corner": (0.142857, -0.079365, 0.031746, 0.031746, -0.124723),
    "crossed": (0.333333, 0.083333, 0.302083, 0.268332, 0.208333),
    "apart": (0.0, -0.777778, -0.444444, -0.444444, -0.614739),
    "usual": (0.708661, 0.685584, 0.704944, 0.704379, 0.673816),
}
FAMILY = (boxes.iou, boxes.giou, boxes.diou, boxes.ciou, boxes.distance_penalised_iou)


def pair(name: str, make: Callable, dtype: object) -> tuple:
    return tuple(make(box, dtype=dtype) for box in PAIRS[name])


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize(("make", "dtype"), [(np.asarray, np.float32), (torch.tensor, torch.float32)])
def test_iou_family_has_the_golden_values(name: str, make: Callable, dtype: object) -> None:
    a, b = pair(name, make, dtype)
    for function, expected in zip(FAMILY, GOLDEN[name], strict=True):
        assert float(function(a, b)) == pytest.approx(expected, abs=1.5e-6), function.__name__


@pytest.mark.parametrize("function", FAMILY)
def test_family_broadcasts_and_is_symmetric(function: Callable) -> None:
    a = np.asarray([PAIRS[name][0] for name in PAIRS], dtype=np.float32)
    b = np.asarray([PAIRS[name][1] for name in PAIRS], dtype=np.float32)
    np.testing.assert_allclose(function(a, b), function(b, a), atol=1e-6)
    every = function(a[:, None, :], b[None, :, :])
    assert every.shape == (4, 4)
    np.testing.assert_allclose(np.diag(every), function(a, b), atol=1e-6)


def test_iou_matrix_by_counting_pixels() -> None:
    rng = np.random.default_rng(0)
    corners = np.sort(rng.integers(0, 20, (2, 9, 2, 2)), axis=2)
    a, b = corners.reshape(2, 9, 4).astype(np.float32)

    def mask(box: np.ndarray) -> np.ndarray:
        canvas = np.zeros((20, 20), dtype=bool)
        left, top, right, bottom = box.astype(int)
        canvas[top:bottom, left:right] = True
        return canvas

    expected = [[(mask(x) & mask(y)).sum() / max((mask(x) | mask(y)).sum(), 1) for y in b] for x in a]
    np.testing.assert_allclose(boxes.iou_matrix(a, b), expected, atol=1e-6)


def test_matrix_of_normalised_boxes_is_not_bent_by_an_epsilon() -> None:
    a = np.asarray([[0, 0, 1e-5, 1e-5]], dtype=np.float32)
    assert boxes.iou_matrix(a, a)[0, 0] == 1


def test_boxes_without_area_overlap_nothing_and_do_not_warn() -> None:
    point = np.asarray([[3, 3, 3, 3]], dtype=np.float32)
    assert boxes.iou_matrix(point, point)[0, 0] == 0
    for function in FAMILY:
        assert np.isfinite(function(point, point)).all()


def test_area_of_inverted_box_is_zero() -> None:
    assert boxes.area(np.asarray([5.0, 5.0, 1.0, 1.0])) == 0


def test_ciou_gradient_treats_alpha_as_a_constant() -> None:
    target = torch.tensor(PAIRS["crossed"][1], dtype=torch.float64)
    predicted = torch.tensor(PAIRS["crossed"][0], dtype=torch.float64, requires_grad=True)
    boxes.ciou(predicted, target).backward()
    alpha = 0.1678261 / (1 - 1 / 3 + 0.1678261)

    def with_fixed_alpha(box: np.ndarray) -> float:
        goal = np.asarray(PAIRS["crossed"][1], dtype=np.float64)
        angle = np.arctan((goal[2] - goal[0]) / (goal[3] - goal[1])) - np.arctan((box[2] - box[0]) / (box[3] - box[1]))
        return float(boxes.diou(box, goal, eps=0.0) - alpha * 4 / np.pi**2 * angle**2)

    base, step = np.asarray(PAIRS["crossed"][0], dtype=np.float64), 1e-6
    # One-sided where the boxes share an edge (top): minimum and maximum have a kink there.
    numeric = [
        (with_fixed_alpha(base + step * axis) - with_fixed_alpha(base - step * axis)) / (2 * step) for axis in np.eye(4)
    ]
    smooth = [0, 2, 3]
    np.testing.assert_allclose(predicted.grad.numpy()[smooth], np.asarray(numeric)[smooth], rtol=1e-5)


def test_ciou_gradient_is_finite_for_equal_and_degenerate_boxes() -> None:
    predicted = torch.tensor([[1.0, 1, 4, 5], [2, 2, 2, 2]], requires_grad=True)
    boxes.ciou(predicted, torch.tensor([[1.0, 1, 4, 5], [0, 0, 4, 4]])).sum().backward()
    assert torch.isfinite(predicted.grad).all()


coordinate = st.integers(-4096, 4096).map(lambda n: n / 4)
some_boxes = st.lists(st.tuples(coordinate, coordinate, coordinate, coordinate), min_size=1, max_size=8)


@given(some_boxes)
def test_conversions_are_inverse_to_each_other(rows: list) -> None:
    values = np.asarray(rows, dtype=np.float64)
    for there, back in (
        (boxes.xyxy_to_cxcywh, boxes.cxcywh_to_xyxy),
        (boxes.xyxy_to_tlwh, boxes.tlwh_to_xyxy),
        (lambda b: boxes.normalise(b, 512, 1024), lambda b: b * (1024, 512, 1024, 512)),
    ):
        np.testing.assert_array_equal(back(there(values)), values)
        np.testing.assert_array_equal(there(values), there(torch.from_numpy(values)).numpy())


def test_conversions_agree_with_hand_computed_values() -> None:
    box = np.asarray([10.0, 20, 30, 60])
    np.testing.assert_array_equal(boxes.xyxy_to_cxcywh(box), [20, 40, 20, 40])
    np.testing.assert_array_equal(boxes.xyxy_to_tlwh(box), [10, 20, 20, 40])
    np.testing.assert_array_equal(boxes.normalise(box, height=100, width=200), [0.05, 0.2, 0.15, 0.6])


@given(some_boxes)
def test_clip_keeps_boxes_inside_and_changes_nothing_twice(rows: list) -> None:
    once = boxes.clip_xyxy(np.asarray(rows, dtype=np.float32), 480, 640)
    assert once.min() >= 0
    assert once[:, ::2].max() <= 640
    assert once[:, 1::2].max() <= 480
    np.testing.assert_array_equal(boxes.clip_xyxy(once, 480, 640), once)


@given(some_boxes, some_boxes)
def test_family_is_ordered_and_bounded(first: list, second: list) -> None:
    a, b = (boxes.cxcywh_to_xyxy(np.abs(np.asarray(rows, dtype=np.float64))) for rows in (first, second))
    plain, generalised, distance, complete, darknet = (f(a[:, None, :], b[None, :, :]) for f in FAMILY)
    assert (plain >= 0).all()
    assert (plain <= 1).all()
    for other in (generalised, distance, darknet):
        assert (other <= plain + 1e-9).all()
    assert (complete <= distance + 1e-9).all()
    assert (generalised >= -1 - 1e-9).all()
