"""Decoding against OpenCV's own region layer, against formulas in float64, and between its two readers."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scaledyolo import boxes
from scaledyolo.arch.ops import Detect
from scaledyolo.errors import UsageError
from scaledyolo.postprocess import Candidates, decode_all, decode_candidates

ANCHORS = ((10.0, 13.0), (16.0, 30.0), (33.0, 23.0))
SIZE = (64, 96)
EXP = Detect(ANCHORS, (1, 2), 3, "exp", scale_xy=1.2)
SQUARED = Detect(ANCHORS, (1, 2), 3, "sigmoid-squared", scale_xy=2.0)
ACTIVATED = replace(SQUARED, activated=True)
REGION = Detect(((12.0, 16.0), (24.0, 36.0)), (0, 1), 3, "region", softmax=True)
FAMILIES = {"exp": EXP, "squared": SQUARED, "activated": ACTIVATED, "region": REGION}

# The same heads in Darknet's words; anchors of [region] are in cells of 8 pixels.
YOLO_KEYS = "[yolo]\nmask=1,2\nanchors=10,13,16,30,33,23\nclasses=3\nnum=3\nthresh=0.00001\n"
SECTIONS = {
    "exp": ("linear", YOLO_KEYS + "scale_x_y=1.2\n"),
    "activated": ("logistic", YOLO_KEYS + "scale_x_y=2.0\nnew_coords=1\n"),
    "region": ("linear", "[region]\nanchors=1.5,2,3,4.5\nclasses=3\ncoords=4\nnum=2\nsoftmax=1\n"),
}


def random_maps(detects: list[Detect], size: tuple[int, int], batch: int = 1, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    maps = []
    for stride, detect in zip((8, 16, 32), detects, strict=False):
        shape = (batch, len(detect.mask) * detect.num_outputs, size[0] // stride, size[1] // stride)
        values = rng.normal(0, 2, shape)
        maps.append((1 / (1 + np.exp(-values)) if detect.activated else values).astype(np.float32))
    return maps


def opencv_network(activation: str, section: str) -> cv2.dnn.Net:
    """One convolution of stride 8 on a 96x64 image and a detection section, as Darknet files in memory."""
    rng = np.random.default_rng(1)
    cfg = (
        f"[net]\nwidth=96\nheight=64\nchannels=3\n\n[convolutional]\nfilters=16\nsize=1\nstride=8\npad=0\n"
        f"activation={activation}\n\n{section}"
    )
    bias = np.tile([0, 0, 0, 0, 3, 0, 0, 0], 2).astype("<f4")  # high objectness: OpenCV zeroes classes under 0.2
    weights = struct.pack("<iiiq", 0, 2, 5, 0) + bias.tobytes() + rng.normal(0, 1, 48).astype("<f4").tobytes()
    return cv2.dnn.readNetFromDarknet(np.frombuffer(cfg.encode(), np.uint8), np.frombuffer(weights, np.uint8))


@pytest.mark.parametrize("family", SECTIONS)
def test_rows_equal_those_of_opencv(family: str) -> None:
    network = opencv_network(*SECTIONS[family])
    network.setInput(np.random.default_rng(2).normal(size=(1, 3, *SIZE)).astype(np.float32))
    names = network.getLayerNames()
    theirs, channels_last = (np.asarray(out) for out in network.forward([names[-1], names[-2]]))
    raw = np.ascontiguousarray(channels_last.transpose(0, 3, 1, 2))
    ours = decode_all([raw], [FAMILIES[family]], SIZE)[0]

    theirs = theirs.reshape(8, 12, 2, 8).transpose(2, 0, 1, 3).reshape(-1, 8)  # y, x, anchor -> anchor, y, x
    pixels = theirs[:, :4] * [SIZE[1], SIZE[0], SIZE[1], SIZE[0]]
    np.testing.assert_allclose(ours[:, :4], pixels, rtol=2e-5, atol=2e-4)
    np.testing.assert_allclose(ours[:, 4], theirs[:, 4], rtol=1e-5)
    scored = theirs[:, 5:] > 0
    assert scored.mean() > 0.2
    np.testing.assert_allclose((ours[:, 5:] * ours[:, 4:5])[scored], theirs[:, 5:][scored], rtol=2e-5)


def row_by_formula(raw: np.ndarray, detect: Detect, anchor: int, y: int, x: int, stride: tuple) -> list[float]:
    """One row in Python floats, straight from the table of the specification."""
    values = [float(v) for v in raw[anchor * detect.num_outputs : (anchor + 1) * detect.num_outputs, y, x]]
    sigma = (lambda v: v) if detect.activated else (lambda v: 1 / (1 + math.exp(-v)))
    k = 2.0 if detect.decoding == "sigmoid-squared" else detect.scale_xy
    centre = [
        (k * sigma(v) - (k - 1) / 2 + cell) * step
        for v, cell, step in zip(values[:2], (x, y), (stride[1], stride[0]), strict=True)
    ]
    grow = (lambda v: (2 * sigma(v)) ** 2) if detect.decoding == "sigmoid-squared" else math.exp
    sides = [side * grow(v) for v, side in zip(values[2:4], detect.level_anchors[anchor], strict=True)]
    classes = [sigma(v) for v in values[5:]]
    if detect.softmax:
        classes = [math.exp(v) / sum(map(math.exp, values[5:])) for v in values[5:]]
    return [*centre, *sides, sigma(values[4]), *classes]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_follows_the_formula_in_level_anchor_y_x_order(family: str) -> None:
    detects = [FAMILIES[family], replace(FAMILIES[family], mask=(0,))]
    maps = random_maps(detects, SIZE, batch=2)
    expected = [
        row_by_formula(raw[1], detect, anchor, y, x, (SIZE[0] / raw.shape[2], SIZE[1] / raw.shape[3]))
        for raw, detect in zip(maps, detects, strict=True)
        for anchor in range(len(detect.mask))
        for y in range(raw.shape[2])
        for x in range(raw.shape[3])
    ]
    np.testing.assert_allclose(decode_all(maps, detects, SIZE)[1], expected, rtol=3e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("strides", "anchors", "size", "rows"),
    [
        ((32,), 5, 416, 845),
        ((8, 16, 32), 3, 416, 10_647),
        ((8, 16, 32), 3, 608, 22_743),
        ((8, 16, 32), 3, 640, 25_200),
        ((8, 16, 32), 4, 896, 65_856),
        ((16, 32), 3, 416, 2_535),
        ((8, 16, 32), 3, 320, 6_300),
    ],
)
def test_number_of_rows(strides: tuple, anchors: int, size: int, rows: int) -> None:
    detect = Detect(((8.0, 8.0),) * anchors, tuple(range(anchors)), 1)
    maps = [np.zeros((1, anchors * 6, size // s, size // s), dtype=np.float32) for s in strides]
    assert decode_all(maps, [detect] * len(strides), (size, size)).shape == (1, rows, 6)


def expected_candidates(dense: np.ndarray, threshold: float, multi_label: bool) -> tuple[np.ndarray, ...]:
    """The definition, applied to all rows of one image."""
    scores = dense[:, 4:5] * dense[:, 5:]
    wanted = scores > threshold
    if not multi_label:
        wanted &= np.arange(scores.shape[1]) == scores.argmax(axis=1)[:, None]
    row, class_ids = np.nonzero(wanted)
    return boxes.cxcywh_to_xyxy(dense[row, :4]), scores[row, class_ids], class_ids


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.001, 0.25, 0.9, 1.0])
def test_survivors_are_those_of_the_dense_rows(family: str, multi_label: bool, threshold: float) -> None:
    detects = [FAMILIES[family], replace(FAMILIES[family], mask=(0,))]
    maps = random_maps(detects, SIZE, batch=3)
    dense = decode_all(maps, detects, SIZE)
    found = decode_candidates(maps, detects, SIZE, threshold, multi_label)
    assert len(found) == 3
    for image, candidates in enumerate(found):
        wanted = expected_candidates(dense[image], threshold, multi_label)
        assert len(candidates) == len(wanted[1])
        np.testing.assert_allclose(candidates.boxes_xyxy, wanted[0], rtol=1e-6, atol=1e-4)
        np.testing.assert_allclose(candidates.scores, wanted[1], rtol=1e-6)
        np.testing.assert_array_equal(candidates.class_ids, wanted[2])
        assert candidates.boxes_xyxy.dtype == candidates.scores.dtype == np.float32
        assert candidates.class_ids.dtype == np.int64
        if threshold == 1.0:
            assert len(candidates) == 0


@settings(deadline=None, max_examples=60)
@given(st.floats(0, 1), st.floats(-30, 30, width=32), st.floats(-30, 30, width=32), st.booleans(), st.booleans())
def test_the_shortcut_on_raw_values_never_changes_the_decision(
    threshold: float, objectness: float, class_logit: float, activated: bool, multi_label: bool
) -> None:
    detect = replace(ACTIVATED if activated else SQUARED, num_classes=1, mask=(0,))
    raw = np.zeros((1, 6, 1, 1), dtype=np.float32)
    raw[0, 4:, 0, 0] = objectness, class_logit
    if activated:
        raw = (1 / (1 + np.exp(-raw.astype(np.float64)))).astype(np.float32)
    dense = decode_all([raw], [detect], (8, 8))[0, 0]
    (candidates,) = decode_candidates([raw], [detect], (8, 8), threshold, multi_label)
    assert len(candidates) == int(dense[4] * dense[5] > threshold)


def to_torch(maps: list[np.ndarray]) -> list[torch.Tensor]:
    return [torch.from_numpy(raw) for raw in maps]


@pytest.mark.parametrize("family", FAMILIES)
def test_torch_gives_what_numpy_gives(family: str) -> None:
    detects = [FAMILIES[family]] * 2
    maps = random_maps(detects, SIZE, batch=2, seed=5)
    rows = decode_all(to_torch(maps), detects, SIZE)
    np.testing.assert_allclose(rows.numpy(), decode_all(maps, detects, SIZE), rtol=1e-5, atol=1e-5)
    for multi_label in (False, True):
        theirs = decode_candidates(to_torch(maps), detects, SIZE, 0.1, multi_label)
        for ours, other in zip(decode_candidates(maps, detects, SIZE, 0.1, multi_label), theirs, strict=True):
            assert isinstance(other.boxes_xyxy, torch.Tensor)
            np.testing.assert_allclose(other.boxes_xyxy.numpy(), ours.boxes_xyxy, rtol=1e-5, atol=1e-4)
            np.testing.assert_allclose(other.scores.numpy(), ours.scores, rtol=1e-5)
            np.testing.assert_array_equal(other.class_ids.numpy(), ours.class_ids)


def test_gradients_flow_through_dense_decoding() -> None:
    (raw,) = to_torch(random_maps([SQUARED], SIZE))
    raw.requires_grad_()
    decode_all([raw], [SQUARED], SIZE).sum().backward()
    assert torch.isfinite(raw.grad).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_maps_are_decoded_in_single_precision(family: str) -> None:
    detects, size = [FAMILIES[family]], (2048, 2048)
    half = [raw.astype(np.float16) for raw in random_maps(detects, size)]
    single = [raw.astype(np.float32) for raw in half]
    np.testing.assert_array_equal(decode_all(half, detects, size), decode_all(single, detects, size))
    ours, same = (decode_candidates(maps, detects, size, 0.3)[0] for maps in (half, single))
    np.testing.assert_array_equal(ours.boxes_xyxy, same.boxes_xyxy)
    np.testing.assert_array_equal(ours.scores, same.scores)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 3e38])
@pytest.mark.parametrize("channel", range(8))
@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy])
def test_values_that_are_no_numbers_do_no_harm(family: str, poison: float, channel: int, make: Callable) -> None:
    detect = FAMILIES[family]
    (raw,) = random_maps([detect], SIZE)
    raw[0, channel, 2, 3] = poison
    for multi_label in (False, True):
        (candidates,) = decode_candidates([make(raw)], [detect], SIZE, 0.0, multi_label)
        values = Candidates(*(np.asarray(v) for v in (candidates.boxes_xyxy, candidates.scores, candidates.class_ids)))
        assert np.isfinite(values.boxes_xyxy).all()
        assert np.isfinite(values.scores).all()
        assert np.isfinite(boxes.area(values.boxes_xyxy)).all()
        pairs = 8 * 12 * 2 * (3 if multi_label else 1)
        assert pairs - 3 <= len(candidates) <= pairs


def test_class_filter_comes_after_the_choice_of_the_best_class() -> None:
    maps = random_maps([SQUARED], SIZE)
    for multi_label in (False, True):
        (everything,) = decode_candidates(maps, [SQUARED], SIZE, 0.2, multi_label)
        (some,) = decode_candidates(maps, [SQUARED], SIZE, 0.2, multi_label, class_filter=[0, 2])
        wanted = everything.take(everything.class_ids != 1)
        np.testing.assert_array_equal(some.boxes_xyxy, wanted.boxes_xyxy)
        np.testing.assert_array_equal(some.class_ids, wanted.class_ids)


def test_misfits_are_refused_with_what_was_expected() -> None:
    maps = random_maps([SQUARED], SIZE)
    with pytest.raises(UsageError, match="1 maps were given for 2 heads"):
        decode_all(maps, [SQUARED, SQUARED], SIZE)
    with pytest.raises(UsageError, match=r"head 0 has shape .*needs \(1, 18, height, width\)"):
        decode_all(maps, [replace(SQUARED, num_classes=4)], SIZE)
    with pytest.raises(UsageError, match="between 0 and 1"):
        decode_candidates(maps, [SQUARED], SIZE, 1.5)
    with pytest.raises(UsageError, match="class 3 does not exist"):
        decode_candidates(maps, [SQUARED], SIZE, class_filter=[3])
