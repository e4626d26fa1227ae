"""TTA sizes and geometry by the printed table, fusion by the paper's equations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaledyolo.errors import DataError, UsageError
from scaledyolo.evaluate.arrays import Predictions, predictions_from_lists
from scaledyolo.evaluate.fusion import weighted_box_fusion
from scaledyolo.evaluate.tta import TtaPass, tta_passes


@pytest.mark.parametrize(
    ("base", "stride", "padded", "content"),
    [
        (640, 32, (640, 544, 448), (640, 531, 428)),
        (896, 128, (896, 768, 640), (896, 743, 600)),
        (1280, 128, (1280, 1152, 896), (1280, 1062, 857)),
        (1536, 128, (1536, 1280, 1152), (1536, 1274, 1029)),
    ],
)
def test_sizes_of_the_passes(base: int, stride: int, padded: tuple[int, ...], content: tuple[int, ...]) -> None:
    passes = tta_passes(base, base, stride)
    assert tuple(one.padded_size[0] for one in passes) == padded
    assert tuple(one.content_size[1] for one in passes) == content
    assert tuple((one.scale, one.flip) for one in passes) == ((1.0, False), (0.83, True), (0.67, False))


def test_first_pass_is_the_input_itself_and_padding_has_the_fill() -> None:
    canvas = np.random.default_rng(0).integers(0, 256, (128, 192, 3), dtype=np.uint8)
    first, flipped, small = tta_passes(128, 192, 64)
    np.testing.assert_array_equal(first.apply(canvas), canvas)
    assert flipped.apply(canvas).shape == (128, 192, 3)
    padded = small.apply(canvas)
    assert padded.shape == (128, 128, 3)
    assert (padded[85:] == 114).all()
    float_padded = small.apply((canvas / 255).astype(np.float32))
    assert float_padded.dtype == np.float32
    assert float_padded[90, 0, 0] == pytest.approx(0.447)
    with pytest.raises(UsageError, match="128x192"):
        first.apply(canvas[:64])


@pytest.mark.parametrize("one", tta_passes(256, 320, 32), ids=str)
def test_a_painted_box_comes_back_to_its_place(one: TtaPass) -> None:
    """Paint, apply the pass, find the paint by threshold, undo: an end-to-end check that knows no formula."""
    canvas = np.zeros((256, 320, 3), dtype=np.uint8)
    box = np.array([40.0, 60.0, 120.0, 160.0])
    canvas[60:160, 40:120] = 255
    rows, columns = np.nonzero(one.apply(canvas)[: one.content_size[0], : one.content_size[1], 0] > 127)
    seen = np.array([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]], dtype=float)
    np.testing.assert_allclose(one.undo(seen)[0], box, atol=1.0)


@given(
    height=st.integers(64, 700),
    width=st.integers(64, 700),
    scale=st.floats(0.3, 1.0),
    flip=st.booleans(),
    seed=st.integers(0, 99),
)
def test_undo_inverts_the_pass(height: int, width: int, scale: float, flip: bool, seed: int) -> None:
    one = TtaPass(height, width, scale, flip, 32)
    boxes = np.random.default_rng(seed).uniform(0, 1, (5, 4)) * (width, height, width, height)
    forward = boxes.copy()
    if flip:
        forward[:, [0, 2]] = width - boxes[:, [2, 0]]
    content_height, content_width = one.content_size
    forward *= (content_width / width, content_height / height) * 2
    np.testing.assert_allclose(one.undo(forward), boxes, atol=1e-9)
    # Cutting to whole pixels loses less than one pixel of the content: the nominal factor errs by less than 1 / scale.
    assert np.abs(one.undo(forward, nominal=True) - boxes).max() <= 1 / scale + 1e-9


def test_too_small_an_input_is_refused() -> None:
    with pytest.raises(UsageError, match="leave nothing to see"):
        tta_passes(1, 1, 32)


def single(*rows: tuple[float, tuple[float, ...]]) -> Predictions:
    """Detections (score, box) of one image and class."""
    return predictions_from_lists([[box for _, box in rows]], [[s for s, _ in rows]], [[0] * len(rows)], num_classes=1)


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


def test_agreeing_models_change_nothing_and_classes_stay_apart(scene: Callable) -> None:
    _, predictions = scene(0)
    alone = weighted_box_fusion([predictions], iou=0.999999)
    thrice = weighted_box_fusion([predictions] * 3, iou=0.999999)
    np.testing.assert_allclose(thrice.boxes_xyxy, alone.boxes_xyxy)
    np.testing.assert_allclose(thrice.scores, alone.scores)
    assert len(alone) == len(predictions)
    np.testing.assert_array_equal(np.bincount(alone.class_ids), np.bincount(predictions.class_ids))
    assert len(weighted_box_fusion([predictions], min_score=2.0)) == 0


def test_fusion_refuses_what_does_not_fit() -> None:
    one, two = single((0.5, (0, 0, 1, 1))), predictions_from_lists([[], []], [[], []], [[], []], num_classes=1)
    with pytest.raises(UsageError, match="as many weights"):
        weighted_box_fusion([one], weights=[1, 2])
    with pytest.raises(DataError, match="cannot be put together"):
        weighted_box_fusion([one, two])
    with pytest.raises(DataError, match="no predictions"):
        weighted_box_fusion([], weights=[])
