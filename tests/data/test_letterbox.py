"""Letterbox against the golden table of training specification 4.1 and its inverse against itself."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaledyolo.data.letterbox import images_to_input, letterbox, rectangle_for_batch, stretch
from scaledyolo.data.placement import place_letterbox
from scaledyolo.errors import UsageError

# Source and canvas (height, width) in pixels; borders above, below, to the left and to the right.
GOLDEN = [
    ((480, 640), (480, 640), (0, 0, 0, 0)),
    ((480, 640), (512, 640), (16, 16, 0, 0)),
    ((480, 640), (512, 640), (16, 16, 0, 0)),
    ((427, 640), (448, 640), (10, 11, 0, 0)),
    ((427, 640), (448, 640), (10, 11, 0, 0)),
    ((720, 1280), (512, 896), (4, 4, 0, 0)),
    ((720, 1280), (768, 1280), (24, 24, 0, 0)),
    ((720, 1280), (896, 1536), (16, 16, 0, 0)),
    ((375, 500), (320, 416), (4, 4, 0, 0)),
    ((1080, 810), (640, 480), (0, 0, 0, 0)),
]


@pytest.mark.parametrize(("source", "canvas", "pads"), GOLDEN)
def test_borders_golden(source: tuple[int, int], canvas: tuple[int, int], pads: tuple[int, int, int, int]) -> None:
    placed = place_letterbox(*source, *canvas)
    assert (placed.pad_top, placed.pad_bottom, placed.pad_left, placed.pad_right) == pads


@pytest.mark.parametrize(
    ("size", "stride", "pad", "expected"),
    [
        (640, 32, 0.5, (512, 672)),
        (640, 64, 0.5, (512, 704)),
        (896, 32, 0.5, (704, 928)),
        (1280, 64, 0.5, (1024, 1344)),
        (1536, 128, 0.5, (1280, 1664)),
        (1536, 128, 0.0, (1152, 1536)),
    ],
)
def test_rectangular_batch_golden(size: int, stride: int, pad: float, expected: tuple[int, int]) -> None:
    assert rectangle_for_batch([0.75, 0.75], size, stride, pad=pad) == expected


def test_rectangular_batch_of_mixed_and_tall_images() -> None:
    assert rectangle_for_batch([0.5, 2.0], 640, 32, pad=0) == (640, 640)
    assert rectangle_for_batch([2.0, 4.0], 640, 32, pad=0) == (640, 320)
    assert rectangle_for_batch([0.25, 0.5], 640, 32, pad=0) == (320, 640)


sides = st.integers(2, 3000)


@settings(deadline=None)
@given(sides, sides, st.integers(32, 1536), st.integers(32, 1536), st.data())
def test_apply_then_undo_returns_the_boxes(
    source_height: int, source_width: int, height: int, width: int, data: st.DataObject
) -> None:
    placed = place_letterbox(source_height, source_width, height, width)
    xs = sorted(data.draw(st.lists(st.floats(0, source_width), min_size=2, max_size=2)))
    ys = sorted(data.draw(st.lists(st.floats(0, source_height), min_size=2, max_size=2)))
    boxes = np.array([[xs[0], ys[0], xs[1], ys[1]]])
    on_canvas = placed.apply(boxes)
    assert np.all(on_canvas >= -1e-9)
    assert np.all(on_canvas <= np.array([width, height, width, height]) + 1e-9)
    np.testing.assert_allclose(placed.undo(on_canvas), boxes, atol=1e-3)
    assert placed.pad_bottom >= 0
    assert placed.pad_right >= 0


@settings(deadline=None)
@given(st.integers(2, 1500), st.integers(2, 1500))
def test_float32_round_trip_within_a_thousandth_of_a_pixel(height: int, width: int) -> None:
    placed = place_letterbox(height, width, 416, 416)
    boxes = np.array([[0, 0, width, height], [width / 3, height / 3, width / 2, height]], np.float32)
    back = placed.undo(placed.apply(boxes))
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, boxes, atol=1e-3)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 64), st.integers(1, 64))
def test_pixels_equal_resize_and_border(source_height: int, source_width: int, height: int, width: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (source_height, source_width, 3), dtype=np.uint8)
    canvas, placed = letterbox(image, height, width)
    inner = (placed.content_width, placed.content_height)
    resized = image if inner == (source_width, source_height) else cv2.resize(image, inner)
    expected = cv2.copyMakeBorder(
        resized,
        placed.pad_top,
        placed.pad_bottom,
        placed.pad_left,
        placed.pad_right,
        cv2.BORDER_CONSTANT,
        value=(114, 114, 114),
    )
    np.testing.assert_array_equal(canvas, expected)


def test_undo_clips_to_the_source_only_if_asked() -> None:
    placed = place_letterbox(100, 200, 64, 64)
    boxes = np.array([[-5.0, -5.0, 80.0, 80.0]])
    np.testing.assert_allclose(placed.undo(boxes), [[0, 0, 200, 100]])
    assert placed.undo(boxes, clip=False).min() < 0


def test_stretch_maps_corners_to_corners() -> None:
    canvas, placed = stretch(np.zeros((100, 200, 3), np.uint8), 32, 48)
    assert canvas.shape == (32, 48, 3)
    np.testing.assert_allclose(placed.apply([[0, 0, 200, 100]]), [[0, 0, 48, 32]])
    np.testing.assert_allclose(placed.undo(np.array([[0.0, 0, 48, 32]])), [[0, 0, 200, 100]])


def test_empty_boxes_keep_their_shape() -> None:
    placed = place_letterbox(10, 10, 32, 32)
    assert placed.apply(np.zeros((0, 4), np.float32)).shape == (0, 4)
    assert placed.undo([]).shape == (0, 4)


def test_input_equals_opencv_blob() -> None:
    canvases = np.random.default_rng(1).integers(0, 256, (3, 33, 47, 3), dtype=np.uint8)
    blob = cv2.dnn.blobFromImages(list(canvases), 1 / 255)
    ours = images_to_input(list(canvases))
    assert ours.flags.c_contiguous
    np.testing.assert_allclose(ours, blob, rtol=2e-7)
    buffer = np.empty_like(ours)
    assert images_to_input(canvases, out=buffer) is buffer
    np.testing.assert_array_equal(buffer, ours)


def test_wrong_input_is_one_sentence() -> None:
    with pytest.raises(UsageError, match="uint8"):
        letterbox(np.zeros((8, 8, 3), np.float32), 32, 32)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="one shape"):
        images_to_input([np.zeros((8, 8, 3), np.uint8), np.zeros((9, 8, 3), np.uint8)])
    with pytest.raises(UsageError, match="at least one pixel"):
        place_letterbox(10, 10, 0, 32)
    with pytest.raises(UsageError, match="no canvas"):
        images_to_input([])
