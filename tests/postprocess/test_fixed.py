"""Fixed shapes give what the usual path gives, and nothing in them asks a device for a value."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scaledyolo.arch.ops import Detect
from scaledyolo.errors import UsageError
from scaledyolo.postprocess import NMS, decode_candidates, suppress
from scaledyolo.postprocess.fixed import FixedPostprocess, _best

ANCHORS = ((10.0, 14.0), (23.0, 27.0), (37.0, 58.0), (81.0, 82.0))
SIZE = (96, 128)


def heads(**options) -> tuple[Detect, ...]:
    return tuple(Detect(ANCHORS, mask, 5, **options) for mask in ((0, 1), (2, 3)))


def maps_of(seed: int, batch: int, scale: float = 2.0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = [(batch, 20, SIZE[0] // stride, SIZE[1] // stride) for stride in (8, 16)]
    return [rng.normal(-0.5, scale, shape).astype(np.float32) for shape in shapes]


def usual(maps, detects, confidence: float, nms: NMS) -> list[np.ndarray]:
    """Rows of each image by the path that is used everywhere else."""
    found = [suppress(one, nms) for one in decode_candidates(maps, detects, SIZE, confidence)]
    return [np.column_stack([one.boxes_xyxy, one.scores, one.class_ids]) for one in found]


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 10_000), st.integers(1, 3), st.sampled_from([0.05, 0.3, 0.7]), st.sampled_from([0.2, 0.45, 0.9]),
    st.booleans(), st.sampled_from([3, 40, None]), st.sampled_from(["exp", "sigmoid-squared"]), st.booleans(),
)  # fmt: skip
def test_fixed_shapes_change_no_answer(
    seed: int, batch: int, confidence: float, iou: float, agnostic: bool, most: int | None, decoding: str, torch_: bool
) -> None:
    detects = heads(decoding=decoding)
    nms = NMS(iou=iou, class_agnostic=agnostic, max_detections=most, max_candidates=100)
    maps = maps_of(seed, batch)
    expected = usual(maps, detects, confidence, nms)
    given_maps = [torch.from_numpy(raw) for raw in maps] if torch_ else maps
    rows, counts = FixedPostprocess(given_maps, detects, SIZE, confidence, nms)(given_maps)
    rows, counts = np.asarray(rows), np.asarray(counts)
    assert rows.shape == (batch, min(most or 100, 100), 6)
    assert counts.tolist() == [len(one) for one in expected]
    for found, count, one in zip(rows, counts, expected, strict=True):
        np.testing.assert_allclose(found[:count], one, rtol=1e-4, atol=1e-4)
        assert not found[count:].any()


def test_what_is_not_a_number_never_becomes_a_detection() -> None:
    detects = heads()
    maps = maps_of(0, 2)
    maps[0][0, :4, 3, 4] = np.nan
    maps[1][0, 4, 2, 2] = np.inf
    maps[1][1] = np.nan
    nms = NMS(max_candidates=100)
    rows, counts = FixedPostprocess(maps, detects, SIZE, 0.3, nms)(maps)
    expected = usual(maps, detects, 0.3, nms)
    assert np.isfinite(rows).all()
    assert counts.tolist() == [len(one) for one in expected]


def test_nothing_found_is_rows_of_zeros() -> None:
    maps = [np.full_like(raw, -20) for raw in maps_of(0, 2)]
    rows, counts = FixedPostprocess(maps, heads(), SIZE)(maps)
    assert counts.tolist() == [0, 0]
    assert rows.shape[0] == 2
    assert not rows.any()


@pytest.mark.parametrize("torch_", [False, True])
def test_the_best_class_is_found_where_probabilities_are_all_one(torch_: bool) -> None:
    maps = [np.full_like(raw, -20) for raw in maps_of(0, 1)]
    maps[0][0, 4:10, 3, 5] = (30, 18, 40, 60, 50, -3)  # classes 0 to 3 have the probability 1 in float32
    given_maps = [torch.from_numpy(raw) for raw in maps] if torch_ else maps
    rows, counts = FixedPostprocess(given_maps, heads(), SIZE)(given_maps)
    assert (int(counts[0]), float(rows[0, 0, 5])) == (1, 2.0)
    assert usual(maps, heads(), 0.25, NMS())[0][0, 5] == 2


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1000), st.integers(1, 60), st.integers(1, 12))
def test_equal_scores_keep_their_order_under_torch(seed: int, total: int, values: int) -> None:
    scores = (np.random.default_rng(seed).integers(0, values, (3, total)) / values).astype(np.float32)
    for number in {1, (total + 1) // 2, total}:
        expected = np.argsort(-scores, axis=1, kind="stable")[:, :number]
        np.testing.assert_array_equal(_best(torch.from_numpy(scores), number), expected)


def test_no_value_is_read_back_and_nothing_leaves_the_device() -> None:
    """Tensors of a device that has no values: any question about one raises, and so does mixing it with another."""
    maps = [torch.empty(raw.shape, device="meta", dtype=torch.float16) for raw in maps_of(0, 2)]
    process = FixedPostprocess(maps, heads(), SIZE, nms=NMS(max_candidates=20))
    rows, counts = process(maps)
    assert rows.shape == (2, 20, 6)
    assert (rows.device.type, counts.device.type, rows.dtype) == ("meta", "meta", torch.float32)
    with pytest.raises(NotImplementedError):
        decode_candidates(maps, heads(), SIZE)  # the usual path does ask


def test_other_kinds_of_suppression_are_refused() -> None:
    with pytest.raises(UsageError, match="greedy, not matrix"):
        FixedPostprocess(maps_of(0, 1), heads(), SIZE, nms=NMS("matrix"))
