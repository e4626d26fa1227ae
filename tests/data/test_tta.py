"""Test-time augmentation: sizes by the printed table, geometry by painted boxes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaledyolo.data.tta import TtaPass, tta_passes
from scaledyolo.errors import UsageError


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


def test_too_small_an_input_is_refused() -> None:
    with pytest.raises(UsageError, match="leave nothing to see"):
        tta_passes(1, 1, 32)
