"""Merging the views of an image: fusion by the paper's equations, joint suppression by what it must not change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaledyolo.errors import UsageError
from scaledyolo.postprocess import NMS, Candidates, merge_views, suppress
from scaledyolo.postprocess.fusion import check_merge, weighted_box_fusion


def single(*rows: tuple[float, tuple[float, ...]]) -> Candidates:
    """Detections (score, box) of one class."""
    boxes_xyxy = np.array([box for _, box in rows], np.float64).reshape(-1, 4)
    return Candidates(boxes_xyxy, np.array([s for s, _ in rows], np.float64), np.zeros(len(rows), np.int64))


def random_detections(seed: int, num: int = 40) -> Candidates:
    """Crowded boxes of three classes, without order."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 60, (num, 2))
    boxes_xyxy = np.concatenate([corners, corners + rng.uniform(10, 40, (num, 2))], axis=1).astype(np.float32)
    return Candidates(boxes_xyxy, rng.random(num, np.float32), rng.integers(0, 3, num))


def assert_equal(found: Candidates, expected: Candidates) -> None:
    np.testing.assert_array_equal(found.class_ids, expected.class_ids)
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.boxes_xyxy, expected.boxes_xyxy)


def test_fusion_by_the_equations() -> None:
    first, second = single((0.9, (0, 0, 10, 10)), (0.5, (50, 50, 60, 60))), single((0.3, (2, 0, 12, 10)))
    fused = weighted_box_fusion([first, second], iou=0.55)
    # Cluster of two: coordinates weighted 3 to 1, score (0.9 + 0.3) / 2. Alone: half the score (T / N = 1 / 2).
    np.testing.assert_allclose(fused.boxes_xyxy, [[0.5, 0, 10.5, 10], [50, 50, 60, 60]])
    np.testing.assert_allclose(fused.scores, [0.6, 0.25])
    trusted = weighted_box_fusion([first, second], weights=[1, 3])
    np.testing.assert_allclose(trusted.boxes_xyxy[0], [1, 0, 11, 10])
    np.testing.assert_allclose(trusted.scores, [(0.9 + 0.9) / 2 * 2 / 4, 0.5 / 4])


def paper_fusion(
    models: list[list[tuple[float, tuple[float, ...]]]], threshold: float
) -> list[tuple[float, tuple[float, ...]]]:
    """Section 3 of the paper, steps 1 to 7, with lists."""

    def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
        w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        shared = max(w, 0) * max(h, 0)
        return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)

    clusters: list[list[tuple[float, tuple[float, ...]]]] = []
    fused: list[tuple[float, tuple[float, ...]]] = []
    for score, box in sorted((row for rows in models for row in rows), key=lambda row: -row[0]):
        overlaps = [overlap(box, other) for _, other in fused]
        place = int(np.argmax(overlaps)) if overlaps and max(overlaps) > threshold else len(fused)
        if place == len(fused):
            clusters.append([])
            fused.append((score, box))
        clusters[place].append((score, box))
        total = sum(s for s, _ in clusters[place])
        mean = tuple(sum(s * b[i] for s, b in clusters[place]) / total for i in range(4))
        fused[place] = (total / len(clusters[place]), mean)
    return sorted(
        ((s * min(len(c), len(models)) / len(models), b) for (s, b), c in zip(fused, clusters, strict=True)),
        key=lambda row: -row[0],
    )


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), num_models=st.integers(1, 4))
def test_fusion_equals_the_paper(seed: int, num_models: int) -> None:
    rng = np.random.default_rng(seed)
    models = []
    for _ in range(num_models):
        corners = rng.uniform(0, 40, (rng.integers(0, 12), 2))
        boxes = np.concatenate([corners, corners + rng.uniform(10, 40, corners.shape)], axis=1)
        models.append([(float(rng.random()), tuple(box)) for box in boxes.tolist()])
    fused = weighted_box_fusion([single(*rows) for rows in models])
    expected = paper_fusion(models, 0.55)
    np.testing.assert_allclose(fused.scores, [score for score, _ in expected], atol=1e-12)
    np.testing.assert_allclose(fused.boxes_xyxy, np.array([box for _, box in expected]).reshape(-1, 4), atol=1e-9)


@given(seed=st.integers(0, 10_000))
def test_agreeing_models_change_nothing_and_classes_stay_apart(seed: int) -> None:
    found = suppress(random_detections(seed), NMS(iou=0.5))
    thrice = weighted_box_fusion([found] * 3, iou=0.999)
    np.testing.assert_array_equal(thrice.class_ids, found.class_ids)
    np.testing.assert_allclose(thrice.scores, found.scores, rtol=1e-6)
    np.testing.assert_allclose(thrice.boxes_xyxy, found.boxes_xyxy, rtol=1e-6)
    assert thrice.boxes_xyxy.dtype == thrice.scores.dtype == np.float32


@given(seed=st.integers(0, 10_000), copies=st.integers(1, 4))
def test_duplicates_reduce_to_the_single_set(seed: int, copies: int) -> None:
    """Training spec 9.9: TTA on identical scales duplicates, then NMS reduces to the single set."""
    found = random_detections(seed)
    for nms in (NMS(), NMS(class_agnostic=True), NMS("diou", 0.6), NMS(max_detections=5)):
        assert_equal(merge_views([found] * copies, nms), suppress(found, nms))


def test_fusion_in_the_merge_keeps_to_its_limits() -> None:
    lonely, agreed = (0.8, (50, 50, 60, 60)), (0.6, (0, 0, 10, 10))
    views = [single(lonely, agreed), single(agreed)]
    np.testing.assert_allclose(merge_views(views, NMS(), "wbf").scores, [0.6, 0.4])
    np.testing.assert_allclose(merge_views(views, NMS(), "wbf", confidence=0.5).scores, [0.6])
    np.testing.assert_allclose(merge_views(views, NMS(max_detections=1), "wbf").boxes_xyxy, [agreed[1]])
    np.testing.assert_allclose(merge_views(views, NMS()).scores, [0.8, 0.6])
    assert len(merge_views([single(), single()], NMS(), "wbf")) == 0


def test_fusion_refuses_what_does_not_fit() -> None:
    one = single((0.5, (0, 0, 1, 1)))
    with pytest.raises(UsageError, match="as many weights"):
        weighted_box_fusion([one], weights=[1, 2])
    with pytest.raises(UsageError, match="fusing 0 models"):
        weighted_box_fusion([])
    with pytest.raises(UsageError, match="Did you mean 'nms'"):
        check_merge("mns", NMS(), 2)
    with pytest.raises(UsageError, match="needs several views"):
        check_merge("wbf", NMS(), 1)
    with pytest.raises(UsageError, match="class by class"):
        check_merge("wbf", NMS(class_agnostic=True), 2)
    for merge, num_views in (("nms", 1), ("nms", 3), ("wbf", 2)):
        check_merge(merge, NMS(), num_views)
