"""Suppression: published values, a brute-force oracle in float64, OpenCV, and properties that hold for any boxes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scaledyolo import boxes
from scaledyolo.errors import UsageError
from scaledyolo.postprocess import NMS, Candidates, nms, pairs, suppress

GREEDY_KINDS = ("greedy", "diou", "darknet", "cluster")
ALL_KINDS = (*GREEDY_KINDS, "merge", "soft-linear", "soft-gaussian", "matrix")
MAKERS = {"numpy": np.asarray, "torch": torch.from_numpy}


def candidates_of(rows: list, scores: list, classes: list, make: Callable = np.asarray) -> Candidates:
    return Candidates(
        make(np.asarray(rows, dtype=np.float32).reshape(-1, 4)),
        make(np.asarray(scores, dtype=np.float32)),
        make(np.asarray(classes, dtype=np.int64)),
    )


def abc(make: Callable = np.asarray) -> Candidates:
    """The three boxes of training.md 5.2."""
    return candidates_of([[0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30]], [0.9, 0.8, 0.7], [0, 0, 0], make)


def clustered(count: int, classes: int = 3, seed: int = 0, objects: int = 12) -> Candidates:
    """Candidates scattered around some objects, with distinct scores."""
    rng = np.random.default_rng(seed)
    which = rng.integers(0, objects, count)
    centres, sizes = rng.uniform(0, 300, (objects, 2))[which], rng.uniform(10, 90, (objects, 2))[which]
    centres, sizes = centres + rng.normal(0, 0.15, sizes.shape) * sizes, sizes * np.exp(rng.normal(0, 0.2, sizes.shape))
    rows = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1)
    scores = (rng.permutation(count) + 1) / (count + 1)
    return candidates_of(rows, scores, rng.integers(0, classes, count))


def converted(candidates: Candidates, make: Callable) -> Candidates:
    return Candidates(make(candidates.boxes_xyxy), make(candidates.scores), make(candidates.class_ids))


def each_its_own_class(candidates: Candidates) -> Candidates:
    return replace(candidates, class_ids=np.arange(len(candidates), dtype=np.int64))


OVERLAPS = {
    "greedy": boxes.iou,
    "cluster": boxes.iou,
    "diou": boxes.diou,
    "darknet": boxes.distance_penalised_iou,
}


def brute_force(candidates: Candidates, kind: str, threshold: float, agnostic: bool = False) -> list[int]:
    """Greedy suppression as everyone would write it down: the whole matrix in float64, one box at a time."""
    rows = np.asarray(candidates.boxes_xyxy, dtype=np.float64)
    conflict = OVERLAPS[kind](rows[:, None, :], rows[None, :, :], eps=1e-300) > threshold
    if not agnostic:
        conflict &= candidates.class_ids[:, None] == candidates.class_ids
    kept: list[int] = []
    for row in np.argsort(-candidates.scores, kind="stable"):
        if not conflict[row, kept].any():
            kept.append(int(row))
    return kept


def assert_same(ours: Candidates, wanted: Candidates) -> None:
    for name in ("boxes_xyxy", "scores", "class_ids"):
        np.testing.assert_array_equal(np.asarray(getattr(ours, name)), np.asarray(getattr(wanted, name)))


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize(
    ("kind", "threshold", "scores"),
    [
        ("greedy", 0.65, (0.9, 0.7)),
        ("greedy", 0.70, (0.9, 0.8, 0.7)),
        ("cluster", 0.65, (0.9, 0.7)),
        ("diou", 0.675, (0.9, 0.8, 0.7)),
        ("diou", 0.65, (0.9, 0.7)),
        ("darknet", 0.65, (0.9, 0.8, 0.7)),
        ("darknet", 0.62, (0.9, 0.7)),
        ("soft-linear", 0.3, (0.9, 0.7, 0.255462)),
        ("soft-gaussian", 0.3, (0.9, 0.7, 0.316709)),
        ("matrix", 0.3, (0.9, 0.7, 0.316709)),
    ],
)
def test_golden_scores(kind: nms.Kind, threshold: float, scores: tuple, make: Callable) -> None:
    np.testing.assert_allclose(np.asarray(suppress(abc(make), NMS(kind, threshold)).scores), scores, atol=1e-6)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_golden_merge(make: Callable) -> None:
    merged = suppress(abc(make), NMS("merge", 0.65, require_redundancy=True))
    low, high = 0.8 / 1.7, 10 + 0.8 / 1.7
    np.testing.assert_allclose(np.asarray(merged.boxes_xyxy), [[low, low, high, high]], atol=1e-5)
    np.testing.assert_allclose(np.asarray(merged.scores), [0.9], atol=1e-6)
    everything = suppress(abc(make), NMS("merge", 0.65))
    np.testing.assert_allclose(np.asarray(everything.boxes_xyxy)[1], [20, 20, 30, 30], atol=1e-5)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("kind", GREEDY_KINDS)
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.65, 0.95, 1.0])
@pytest.mark.parametrize("agnostic", [False, True])
def test_equals_brute_force(kind: nms.Kind, threshold: float, agnostic: bool, make: Callable) -> None:
    candidates = clustered(250)
    config = NMS(kind, threshold, class_agnostic=agnostic, max_detections=None)
    expected = candidates.take(brute_force(candidates, kind, threshold, agnostic))
    assert_same(suppress(converted(candidates, make), config), expected)


@pytest.mark.parametrize("kind", ["greedy", "diou", "darknet"])
def test_small_rounds_and_chunks_give_the_same(kind: nms.Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    candidates, config = clustered(900, classes=2), NMS(kind, 0.5, max_detections=None)
    expected = candidates.take(brute_force(candidates, kind, 0.5))
    monkeypatch.setattr(nms, "ROUND_PAIRS", 50)
    monkeypatch.setattr(nms, "ROUND_BOXES", 7)
    monkeypatch.setattr(pairs, "NUMPY_CHUNK", 13)
    assert_same(suppress(candidates, config), expected)
    assert_same(suppress(candidates, replace(config, max_detections=5)), expected.take(slice(5)))


@pytest.mark.parametrize("threshold", [0.3, 0.45, 0.65])
@pytest.mark.parametrize("seed", range(3))
def test_equals_opencv_within_a_class(threshold: float, seed: int) -> None:
    candidates = clustered(400, classes=1, seed=seed)
    chosen = cv2.dnn.NMSBoxes(boxes.xyxy_to_tlwh(candidates.boxes_xyxy), candidates.scores, 0.0, threshold)
    result = suppress(candidates, NMS(iou=threshold, max_detections=None))
    assert_same(result, candidates.take(np.asarray(chosen, dtype=np.int64)))


def test_an_overlap_equal_to_the_threshold_suppresses_nothing() -> None:
    halves = candidates_of([[0, 0, 2, 1], [0, 0, 1, 1]], [0.9, 0.8], [0, 0])
    assert len(suppress(halves, NMS(iou=0.5))) == 2
    assert len(suppress(halves, NMS(iou=0.4999))) == 1


@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("offset", [0.0, 5_000.0, -300_000.0])
def test_the_sorted_search_finds_exactly_the_pairs_of_the_matrix(threshold: float, offset: float) -> None:
    """Small boxes far from the origin, where float32 coordinates are coarse: rounding must not lose a pair."""
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 40, (400, 2)) / 8 + offset
    rows = np.concatenate([corners, corners + rng.integers(0, 24, (400, 2)) / 8], axis=1).astype(np.float32)
    classes = rng.integers(-1, 2, 400)
    index = pairs.index_boxes(rows, classes, threshold)
    found = pairs.pairs_within(index, lambda a, b: boxes.iou(a, b, boxes.TINY), threshold)
    wanted = np.triu((boxes.iou_matrix(rows, rows) > threshold) & (classes[:, None] == classes), 1)
    assert {(min(pair), max(pair)) for pair in zip(*found, strict=True)} == set(zip(*np.nonzero(wanted), strict=True))
    assert len(found[0]) == wanted.sum()


def soft_oracle(candidates: Candidates, kind: str, threshold: float, sigma: float, floor: float) -> np.ndarray:
    """Soft-NMS with one list, one maximum at a time; final scores, 0 where dropped."""
    rows, scores = candidates.boxes_xyxy.astype(np.float64), candidates.scores.astype(np.float64)
    waiting, final = set(range(len(scores))), np.zeros(len(scores))
    while waiting:
        best = max(waiting, key=lambda row: scores[row])
        waiting.remove(best)
        if scores[best] <= floor:
            continue
        final[best] = scores[best]
        for row in waiting:
            if candidates.class_ids[row] != candidates.class_ids[best]:
                continue
            overlap = float(boxes.iou(rows[best], rows[row], eps=1e-300))
            if kind == "soft-gaussian":
                scores[row] *= np.exp(-(overlap**2) / sigma)
            elif overlap > threshold:
                scores[row] *= 1 - overlap
    return final


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("kind", ["soft-linear", "soft-gaussian"])
def test_soft_equals_its_oracle(kind: nms.Kind, make: Callable) -> None:
    candidates = clustered(120, classes=4)
    config = NMS(kind, 0.3, max_detections=None, score_floor=0.01)
    expected = np.sort(soft_oracle(candidates, kind, 0.3, 0.5, 0.01))[::-1]
    result = suppress(converted(candidates, make), config)
    np.testing.assert_allclose(np.asarray(result.scores), expected[expected > 0], rtol=2e-4)


def matrix_oracle(candidates: Candidates, sharpness: float) -> np.ndarray:
    """Matrix NMS of one class, by its two definitions, with the dense matrix."""
    ranked = candidates.take(np.argsort(-candidates.scores))
    count = len(ranked)
    overlap = np.triu(boxes.iou_matrix(ranked.boxes_xyxy, ranked.boxes_xyxy).astype(np.float64), 1)
    compensation = overlap.max(axis=0)
    scores = ranked.scores.astype(np.float64)
    for j in range(1, count):
        ratio = np.exp(-sharpness * overlap[:j, j] ** 2) / np.exp(-sharpness * compensation[:j] ** 2)
        scores[j] *= ratio.min()
    return scores


def test_matrix_equals_its_oracle_class_by_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scaledyolo.postprocess.rescore.BLOCK_ELEMENTS", 500)
    candidates = clustered(150, classes=3)
    parts = [candidates.take(candidates.class_ids == class_id) for class_id in range(3)]
    expected = np.sort(np.concatenate([matrix_oracle(part, 2.0) for part in parts]))[::-1]
    result = suppress(candidates, NMS("matrix", max_detections=None, score_floor=0.0))
    np.testing.assert_allclose(result.scores, expected, rtol=1e-4)


def test_merge_averages_all_candidates_of_the_class_with_large_overlap() -> None:
    candidates = clustered(200)
    merged = suppress(candidates, NMS("merge", 0.6, max_detections=None))
    kept = candidates.take(brute_force(candidates, "greedy", 0.6))
    assert_same(replace(merged, boxes_xyxy=kept.boxes_xyxy), kept)
    near = (boxes.iou_matrix(kept.boxes_xyxy, candidates.boxes_xyxy) > 0.6) & (
        kept.class_ids[:, None] == candidates.class_ids
    )
    weights = near * candidates.scores.astype(np.float64)
    means = weights @ candidates.boxes_xyxy / weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(merged.boxes_xyxy, means, rtol=1e-5, atol=1e-4)
    confirmed = suppress(candidates, NMS("merge", 0.6, max_detections=None, require_redundancy=True))
    np.testing.assert_array_equal(confirmed.scores, kept.scores[near.sum(axis=1) > 1])


# Corners on a coarse grid make ties, shared edges, equal and empty boxes likely.
corner = st.integers(0, 12)
grid_box = st.tuples(corner, corner, corner, corner).map(
    lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))
)
grid_boxes = st.lists(st.tuples(grid_box, st.integers(0, 2)), max_size=25)
threshold_between_fractions = st.sampled_from([0.0, 0.1234567, 0.3456789, 0.5123456, 0.7654321])


@settings(deadline=None, max_examples=150)
@given(grid_boxes, threshold_between_fractions, st.sampled_from(GREEDY_KINDS), st.data())
def test_equals_brute_force_for_any_boxes_and_ties(
    rows: list, threshold: float, kind: nms.Kind, data: st.DataObject
) -> None:
    scores = data.draw(st.lists(st.sampled_from([0.2, 0.4, 0.6, 0.8]), min_size=len(rows), max_size=len(rows)))
    candidates = candidates_of([box for box, _ in rows], scores, [c for _, c in rows])
    result = suppress(candidates, NMS(kind, threshold, max_detections=None))
    assert_same(result, candidates.take(np.asarray(brute_force(candidates, kind, threshold), dtype=np.int64)))


@settings(deadline=None, max_examples=60)
@given(grid_boxes, threshold_between_fractions, st.randoms(use_true_random=False))
def test_properties_of_greedy(rows: list, threshold: float, shuffle: object) -> None:
    count = len(rows)
    config = NMS(iou=threshold, max_detections=None)
    candidates = candidates_of([b for b, _ in rows], (np.arange(count) + 1) / (count + 1), [c for _, c in rows])
    result = suppress(candidates, config)

    assert_same(suppress(result, config), result)  # idempotent
    order = list(range(count))
    shuffle.shuffle(order)
    assert_same(suppress(candidates.take(np.asarray(order, dtype=np.int64)), config), result)  # order is irrelevant
    overlap = boxes.iou_matrix(result.boxes_xyxy, result.boxes_xyxy)
    same_class = result.class_ids[:, None] == result.class_ids
    assert not (np.triu(overlap, 1) > threshold)[same_class].any()
    for factor, shift in ((4096.0, 0.0), (1.0, -8192.0)):  # scale and position are irrelevant
        moved = replace(candidates, boxes_xyxy=candidates.boxes_xyxy * np.float32(factor) + np.float32(shift))
        np.testing.assert_array_equal(suppress(moved, config).scores, result.scores)


def test_cluster_equals_greedy_on_many_boxes() -> None:
    for seed in range(3):
        candidates = clustered(3000, classes=2, seed=seed, objects=40)
        greedy, cluster = (suppress(candidates, NMS(kind, 0.5, max_detections=None)) for kind in ("greedy", "cluster"))
        assert_same(cluster, greedy)


def test_long_chains_of_decisions_are_followed_to_their_end() -> None:
    """Each box overlaps only its neighbours: greedy keeps every second one."""
    left = np.arange(1500, dtype=np.float32)
    rows = np.stack([left, left * 0, left + 9, left * 0 + 1], axis=1)
    chain = candidates_of(rows, 1 - left / 2000, np.zeros(1500))
    result = suppress(chain, NMS(iou=0.79, max_detections=None))
    np.testing.assert_array_equal(result.boxes_xyxy[:, 0], left[::2])


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("offset", [-50_000.0, 0.0, 4096.0])
def test_classes_never_touch_each_other(kind: nms.Kind, offset: float) -> None:
    """Boxes of 6,000 pixels, exactly one 4,096-pixel class offset apart, and on top of each other."""
    rows = np.asarray([[0, 0, 6000, 6000], [-4096, -4096, 1904, 1904], [0, 0, 6000, 6000]]) + offset
    candidates = candidates_of(rows, [0.9, 0.8, 0.7], [0, 1, 5])
    result = suppress(candidates, NMS(kind, 0.3))
    np.testing.assert_allclose(result.scores, candidates.scores)
    np.testing.assert_allclose(result.boxes_xyxy, candidates.boxes_xyxy)
    agnostic = suppress(candidates, NMS(kind, 0.3, class_agnostic=True))
    assert len(agnostic) < 3 or agnostic.scores.min() < 0.69


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_torch_gives_what_numpy_gives(kind: nms.Kind) -> None:
    candidates = clustered(500)
    config = NMS(kind, 0.45)
    ours, theirs = suppress(candidates, config), suppress(converted(candidates, torch.from_numpy), config)
    np.testing.assert_allclose(theirs.boxes_xyxy.numpy(), ours.boxes_xyxy, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(theirs.scores.numpy(), ours.scores, rtol=1e-4)
    np.testing.assert_array_equal(theirs.class_ids.numpy(), ours.class_ids)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_edge_cases(kind: nms.Kind, make: Callable) -> None:
    config = NMS(kind, 0.5)
    assert len(suppress(candidates_of([], [], [], make), config)) == 0
    one = suppress(candidates_of([[1, 2, 3, 4]], [0.5], [7], make), config)
    np.testing.assert_allclose(np.asarray(one.boxes_xyxy), [[1, 2, 3, 4]])
    points = candidates_of([[5, 5, 5, 5]] * 3, [0.5, 0.6, 0.7], [0, 0, 0], make)
    np.testing.assert_allclose(np.asarray(suppress(points, config).scores), [0.7, 0.6, 0.5])
    broken = candidates_of([[0, 0, 9, 9], [np.nan] * 4, [0, 0, np.inf, 1]], [0.5, 0.9, 0.9], [0, 0, 0], make)
    np.testing.assert_allclose(np.asarray(suppress(broken, config).scores), [0.5])


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_limits(kind: nms.Kind) -> None:
    candidates = each_its_own_class(clustered(50))
    best = np.sort(candidates.scores)[::-1]
    np.testing.assert_allclose(suppress(candidates, NMS(kind, max_detections=7)).scores, best[:7])
    np.testing.assert_allclose(suppress(candidates, NMS(kind, max_candidates=9)).scores, best[:9])
    assert len(suppress(candidates, NMS(kind, max_detections=None))) == 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "greddy"}, "Did you mean 'greedy'"),
        ({"iou": 1.5}, "between 0 and 1"),
        ({"max_detections": 0}, "max_detections must be at least 1"),
        ({"sigma": 0.0}, "sigma of NMS must be positive"),
        ({"score_floor": -1.0}, "score_floor"),
    ],
)
def test_senseless_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        NMS(**options)
