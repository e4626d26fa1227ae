"""Geometry: the direct painter against the general warp, boxes against pixels, and the rules of what is kept."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaledyolo.data.geometry import (
    AffineRange,
    BoxRules,
    Movement,
    Tile,
    draw_movement,
    flip_sample,
    kept_boxes,
    move_boxes,
    move_tiles,
)
from scaledyolo.data.mosaic import mosaic_four, mosaic_nine
from scaledyolo.data.sample import Sample
from scaledyolo.errors import UsageError

KEEP_ALL = BoxRules(min_side=0.0, max_aspect=1e9, min_area_ratio=0.0)
SIZE = 64


def smooth_sample(seed: int, height: int, width: int, num_boxes: int = 3) -> Sample:
    """A smooth image, so that interpolation differs little, with random boxes."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    image = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    corners = rng.uniform(0, 1, (num_boxes, 2, 2)) * (width, height)
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32)
    return Sample(image, boxes, rng.integers(0, 5, num_boxes), seed)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_direct_painting_equals_the_general_warp_inside_tiles(seed: int, nine: bool) -> None:
    rng = np.random.default_rng(seed)
    shapes = rng.integers(SIZE // 3, SIZE + 1, (9, 2))
    samples = [smooth_sample(k, int(h), int(w)) for k, (h, w) in enumerate(shapes)]
    tiles = mosaic_nine(samples, SIZE, rng) if nine else mosaic_four(samples[:4], SIZE, rng)
    canvas = (2 * SIZE, 2 * SIZE)
    movement = draw_movement(rng, AffineRange(translate=0.3), canvas, (SIZE, SIZE))
    direct = move_tiles(tiles, canvas, movement, (SIZE, SIZE), KEEP_ALL)
    general = move_tiles(tiles, canvas, movement, (SIZE, SIZE), KEEP_ALL, direct=False)
    np.testing.assert_array_equal(direct.boxes_xyxy, general.boxes_xyxy)
    np.testing.assert_array_equal(direct.class_ids, general.class_ids)
    near_seam = _near_seam(tiles, movement)
    difference = np.abs(direct.image.astype(int) - general.image.astype(int)).max(axis=2)
    assert difference[~near_seam].max(initial=0) <= 2


def _near_seam(tiles: list[Tile], movement: Movement) -> np.ndarray:
    """Pixels within one source pixel of a tile's border, where the general warp mixes two tiles."""
    mask = np.zeros((SIZE, SIZE), bool)
    m = movement.matrix
    reach = m[0, 0] + 1.0
    centres = np.arange(SIZE) + 0.5
    for tile in tiles:
        xs = [tile.left, tile.left + tile.sample.width, 0, 2 * SIZE]
        ys = [tile.top, tile.top + tile.sample.height, 0, 2 * SIZE]
        for x in xs:
            mask[:, np.abs(centres - (m[0, 0] * x + m[0, 2])) <= reach] = True
        for y in ys:
            mask[np.abs(centres - (m[1, 1] * y + m[1, 2])) <= reach, :] = True
    return mask


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1.0, 2.5))
def test_boxes_follow_the_pixels(seed: int, scale: float) -> None:
    """A white rectangle is found again, in the output image, exactly where its box says."""
    rng = np.random.default_rng(seed)
    image = np.full((80, 100, 3), 114, np.uint8)  # the colour of the border: only the rectangle stands out
    left, top = rng.integers(10, 40, 2)
    right, bottom = left + rng.integers(20, 50), top + rng.integers(20, 35)
    image[top:bottom, left:right] = 255
    sample = Sample(image, np.array([[left, top, right, bottom]], np.float32), np.zeros(1, np.int64))
    shift = rng.uniform(-8, 8, 2)
    matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]], [0, 0, 1]])
    moved = move_tiles([Tile(sample, 0, 0)], (80, 100), Movement(matrix, scale), (80, 100), KEEP_ALL)
    total = (moved.image[..., 0].astype(float) - 114) / (255 - 114)
    box = moved.boxes_xyxy[0] if len(moved.boxes_xyxy) else np.zeros(4)
    # Enlarging bilinearly keeps the summed coverage (the area) and its first moment (the centre).
    if box[0] > 3 and box[1] > 3 and box[2] < 97 and box[3] < 77:
        area = (box[2] - box[0]) * (box[3] - box[1])
        assert total.sum() == pytest.approx(area, rel=0.03)
        centre_x = (total.sum(axis=0) * (np.arange(100) + 0.5)).sum() / total.sum()
        centre_y = (total.sum(axis=1) * (np.arange(80) + 0.5)).sum() / total.sum()
        assert centre_x == pytest.approx((box[0] + box[2]) / 2, abs=0.25)
        assert centre_y == pytest.approx((box[1] + box[3]) / 2, abs=0.25)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_every_kept_box_lies_inside_the_image(seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples = [smooth_sample(k, SIZE, SIZE - 10 * k, 4) for k in range(4)]
    limits = AffineRange(degrees=30, shear=10, perspective=0.001, translate=0.5, scale_low=0.3, scale_high=1.9)
    movement = draw_movement(rng, limits, (2 * SIZE, 2 * SIZE), (48, 56))
    rules = BoxRules(min_area_ratio=0.1)
    moved = move_tiles(mosaic_four(samples, SIZE, rng), (2 * SIZE, 2 * SIZE), movement, (48, 56), rules)
    boxes = moved.boxes_xyxy
    assert moved.image.shape == (48, 56, 3)
    assert (boxes >= 0).all()
    assert (boxes <= np.array([56, 48, 56, 48], np.float32)).all()
    sides = boxes[:, 2:] - boxes[:, :2]
    assert (sides > 2).all()
    assert (sides.max(axis=1, initial=1) / sides.min(axis=1, initial=1e9) < 20).all()


def test_identity_changes_nothing() -> None:
    sample = smooth_sample(3, SIZE, SIZE)
    rng = np.random.default_rng(0)
    still = draw_movement(rng, AffineRange(translate=0, scale_low=1, scale_high=1), (SIZE, SIZE), (SIZE, SIZE))
    for direct in (True, False):
        moved = move_tiles([Tile(sample, 0, 0)], (SIZE, SIZE), still, (SIZE, SIZE), KEEP_ALL, direct=direct)
        np.testing.assert_array_equal(moved.image, sample.image)
        np.testing.assert_allclose(moved.boxes_xyxy, sample.boxes_xyxy, atol=1e-3)


def test_order_of_the_matrix_is_centre_perspective_rotation_shear_translation() -> None:
    """The drawn matrix against one multiplied out here from the same draws, point by point."""
    limits = AffineRange(degrees=40, translate=0.2, scale_low=0.5, scale_high=1.7, shear=12, perspective=0.0008)
    movement = draw_movement(np.random.default_rng(7), limits, (100, 140), (80, 60))
    draws = np.random.default_rng(7).random(8)
    signed = 2 * draws - 1
    scale = 0.5 + 1.2 * draws[3]
    for point in ((0.0, 0.0), (140.0, 100.0), (30.0, 77.0)):
        x, y = point[0] - 70, point[1] - 50
        w = 1 + 0.0008 * (signed[0] * x + signed[1] * y)
        rotation = cv2.getRotationMatrix2D((0, 0), 40 * signed[2], scale)
        x, y = rotation @ (x, y, w)
        kx, ky = np.tan(np.radians(12 * signed[4:6]))
        x, y = x + kx * y, y + ky * x
        expected = (x / w + (0.5 + 0.2 * signed[6]) * 60, y / w + (0.5 + 0.2 * signed[7]) * 80)
        moved = movement.matrix @ (*point, 1)
        np.testing.assert_allclose(moved[:2] / moved[2], expected, rtol=1e-9)
    assert movement.scale == pytest.approx(scale)


def test_rotated_boxes_are_hulls_of_their_corners() -> None:
    quarter = Movement(np.array([[0.0, -1, 50], [1, 0, 0], [0, 0, 1]]), 1.0)
    np.testing.assert_allclose(move_boxes(np.array([[10, 0, 30, 10]], np.float32), quarter), [[40, 10, 50, 30]])


@pytest.mark.parametrize(
    ("after", "ratio", "kept"),
    [
        ((0, 0, 10, 10), 0.2, True),
        ((0, 0, 2, 10), 0.0, False),  # a side of 2 pixels is not larger than 2
        ((0, 0, 2.1, 10), 0.2, True),  # 21 of 100: above .2
        ((0, 0, 2.5, 7.9), 0.2, False),  # 19.75 of 100: below .2 [L]
        ((0, 0, 2.5, 7.9), 0.1, True),  # but above .1 [C]
        ((0, 0, 3, 60), 0.1, False),  # aspect 20 is not below 20
    ],
)
def test_box_rules_of_the_specification(after: tuple[float, ...], ratio: float, kept: bool) -> None:
    before = np.array([[0, 0, 20, 20]], np.float32)  # times scale .5: area 100
    assert kept_boxes(before, np.array([after], np.float32), 0.5, BoxRules(min_area_ratio=ratio)).tolist() == [kept]


@settings(deadline=None)
@given(st.integers(0, 1000), st.booleans(), st.booleans())
def test_flips_are_their_own_inverse(seed: int, horizontal: bool, vertical: bool) -> None:
    sample = smooth_sample(seed, 17, 23)
    once = flip_sample(sample, horizontal=horizontal, vertical=vertical)
    twice = flip_sample(once, horizontal=horizontal, vertical=vertical)
    np.testing.assert_array_equal(twice.image, sample.image)
    np.testing.assert_allclose(twice.boxes_xyxy, sample.boxes_xyxy, atol=1e-3)
    if horizontal:
        np.testing.assert_array_equal(once.image[0, 0], sample.image[-1 if vertical else 0, -1])
        assert (once.boxes_xyxy[:, 0] <= once.boxes_xyxy[:, 2]).all()


def test_mosaic_four_places_inner_corners_at_the_centre() -> None:
    samples = [smooth_sample(k, 30 + k, 64 - k) for k in range(4)]
    tiles = mosaic_four(samples, SIZE, np.random.default_rng(0), centre="fixed")
    corners = [(tile.left, tile.top) for tile in tiles]
    assert corners == [(0, 34), (64, 33), (2, 64), (64, 64)]
    random = mosaic_four(samples, SIZE, np.random.default_rng(5))
    assert SIZE / 2 <= random[3].left <= 3 * SIZE / 2
    assert SIZE / 2 <= random[3].top <= 3 * SIZE / 2
    with pytest.raises(UsageError, match="four images"):
        mosaic_four(samples[:3], SIZE, np.random.default_rng(0))


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_tiles_of_a_mosaic_of_nine_do_not_overlap(seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples = [
        Sample(np.zeros((int(h), int(w), 3), np.uint8), np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
        for h, w in rng.integers(5, SIZE + 1, (9, 2))
    ]
    covered = np.zeros((5 * SIZE, 5 * SIZE), int)
    for tile in mosaic_nine(samples, SIZE, rng):
        x, y = int(tile.left) + 2 * SIZE, int(tile.top) + 2 * SIZE
        covered[y : y + tile.sample.height, x : x + tile.sample.width] += 1
    assert covered.max() == 1
