"""Colour, mixing, Darknet crops and the augmenter as a whole."""

from __future__ import annotations

import colorsys
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaledyolo.data import colour
from scaledyolo.data.augment import NO_AUGMENTATION, AugmentConfig, Augmenter
from scaledyolo.data.darknet_style import draw_crop, jitter_crop
from scaledyolo.data.geometry import BoxRules
from scaledyolo.data.letterbox import letterbox
from scaledyolo.data.mixing import covered_share, cutmix, cutout, mixup
from scaledyolo.data.plugins import from_albumentations
from scaledyolo.data.sample import Sample
from scaledyolo.errors import UsageError

SIZE = 64


def make_sample(index: int) -> Sample:
    rng = np.random.default_rng(index)
    height, width = ((48, 64), (64, 40), (64, 64), (32, 64), (64, 60))[index % 5]
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    corners = rng.uniform(0, 1, (5, 2, 2)) * (width, height)
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32)
    return Sample(image, boxes, rng.integers(0, 3, 5), index)


EVERYTHING = AugmentConfig(
    mosaic=0.7,
    mosaic_nine=0.3,
    degrees=10,
    shear=3,
    perspective=0.0005,
    mixup=0.4,
    cutmix=0.4,
    blur=0.3,
    grayscale=0.3,
    cutout=0.4,
    flip_vertical=0.5,
)


# Darknet's cfg values (jitter, hue, saturation, exposure, mosaic half of the time).
DARKNET = AugmentConfig(
    family="darknet", mosaic=0.5, hue=0.1, saturation=1.5, value=1.5, min_side=1.0, max_aspect=1e9, min_area_ratio=0.0
)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([EVERYTHING, DARKNET, AugmentConfig()]))
def test_any_augmentation_gives_valid_samples_and_repeats_itself(seed: int, config: AugmentConfig) -> None:
    augmenter = Augmenter(make_sample, 5, SIZE, config)
    zoom = (0.5, 1.0, 1.5)[seed % 3]
    first = augmenter(seed % 5, np.random.default_rng(seed), zoom=zoom)
    again = augmenter(seed % 5, np.random.default_rng(seed), zoom=zoom)
    side = round(SIZE * zoom)
    assert first.image.shape == (side, side, 3)
    assert first.image.dtype == np.uint8
    assert first.boxes_xyxy.dtype == np.float32
    assert len(first.boxes_xyxy) == len(first.class_ids)
    assert ((first.boxes_xyxy >= 0) & (first.boxes_xyxy <= side)).all()
    assert (first.boxes_xyxy[:, 2:] > first.boxes_xyxy[:, :2]).all()
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.boxes_xyxy, again.boxes_xyxy)


def test_sources_are_never_written() -> None:
    samples = [make_sample(index) for index in range(5)]
    for sample in samples:
        for array in (sample.image, sample.boxes_xyxy, sample.class_ids):
            array.flags.writeable = False
    augmenter = Augmenter(samples.__getitem__, 5, SIZE, EVERYTHING)
    for seed in range(30):
        made = augmenter(seed % 5, np.random.default_rng(seed))  # writing into a source would raise
        assert all(not np.shares_memory(made.image, sample.image) for sample in samples)


@pytest.mark.parametrize("index", range(5))
def test_no_augmentation_is_the_letterbox(index: int) -> None:
    sample = make_sample(index)
    plain = Augmenter(make_sample, 5, SIZE, NO_AUGMENTATION)(index, np.random.default_rng(0))
    canvas, placed = letterbox(sample.image, SIZE, SIZE)
    np.testing.assert_array_equal(plain.image, canvas)
    # min_side and max_aspect may still drop slivers; the rest is where the letterbox puts it.
    expected = placed.apply(sample.boxes_xyxy)
    for box in plain.boxes_xyxy:
        assert np.abs(expected - box).max(axis=1).min() < 1e-3


def test_multi_scale_zoom_scales_boxes_alike() -> None:
    augmenter = Augmenter(make_sample, 5, SIZE, AugmentConfig(min_side=0, max_aspect=1e9))
    for seed in range(10):
        one = augmenter(0, np.random.default_rng(seed))
        half = augmenter(0, np.random.default_rng(seed), zoom=0.5)
        np.testing.assert_allclose(half.boxes_xyxy, one.boxes_xyxy / 2, atol=1e-3)


def test_gains_of_one_change_nothing_and_value_scales() -> None:
    image = make_sample(0).image
    assert colour.scale_hsv(image, 1.0, 1.0, 1.0) is image
    grey = np.full((4, 4, 3), 100, np.uint8)
    assert set(np.unique(colour.scale_hsv(grey, 1.01, 1.5, 1.2))) == {120}
    assert set(np.unique(colour.scale_hsv(grey, 1.0, 1.0, 3.0))) == {255}


@settings(deadline=None)
@given(
    st.tuples(*[st.integers(0, 255)] * 3),
    st.floats(0.98, 1.02),
    st.floats(0.3, 1.7),
    st.floats(0.6, 1.4),
)
def test_hsv_against_the_standard_library(
    rgb: tuple[int, int, int], hue: float, saturation: float, value: float
) -> None:
    """colorsys in floats; OpenCV keeps hue in steps of 2 degrees and saturation in 256, hence the tolerance."""
    h, s, v = colorsys.rgb_to_hsv(*(channel / 255 for channel in rgb))
    turned = (h * hue) % 1.0
    exact = np.array(colorsys.hsv_to_rgb(turned, min(s * saturation, 1), min(v * value, 1))) * 255
    image = np.array([[rgb]], np.uint8)
    ours = colour.scale_hsv(image, hue, saturation, value)[0, 0]
    np.testing.assert_allclose(ours, exact, atol=14)


def test_grayscale_and_blur() -> None:
    image = make_sample(0).image
    grey = colour.grayscale(image)
    assert (grey[..., 0] == grey[..., 1]).all()
    luminance = image @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(grey[..., 0], luminance, atol=1)
    inner = image[1:4, 1:4].reshape(-1, 3).mean(axis=0)
    np.testing.assert_allclose(colour.blur(image, 3)[2, 2], inner, atol=1)


def test_mixup_blends_by_the_drawn_share_and_keeps_all_boxes() -> None:
    first, second = make_sample(2), make_sample(7)
    mixed = mixup(first, second, np.random.default_rng(3))
    share = np.random.default_rng(3).beta(8.0, 8.0)
    np.testing.assert_allclose(mixed.image, share * first.image.astype(float) + (1 - share) * second.image, atol=0.51)
    assert len(mixed.boxes_xyxy) == 10
    with pytest.raises(UsageError, match="one shape"):
        mixup(first, make_sample(0), np.random.default_rng(0))


def test_cutmix_pastes_a_window_and_sorts_out_boxes() -> None:
    white = Sample(np.full((64, 64, 3), 255, np.uint8), np.array([[0, 0, 64, 64]], np.float32), np.array([1]))
    tiny = np.array([[x, y, x + 4, y + 4] for x in range(0, 64, 8) for y in range(0, 64, 8)], np.float32)
    black = Sample(np.zeros((64, 64, 3), np.uint8), tiny, np.zeros(len(tiny), np.int64))
    mixed = cutmix(black, white, np.random.default_rng(0), rules=BoxRules(min_area_ratio=0.01))
    pasted = mixed.image[..., 0] == 255
    rows, columns = np.flatnonzero(pasted.any(axis=1)), np.flatnonzero(pasted.any(axis=0))
    window = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    np.testing.assert_array_equal(mixed.boxes_xyxy[mixed.class_ids == 1], window[None])
    left = mixed.boxes_xyxy[mixed.class_ids == 0].astype(int)
    for x0, y0, x1, y1 in tiny.astype(int):
        hidden = pasted[y0:y1, x0:x1].mean() > 0.6
        assert hidden != (left == (x0, y0, x1, y1)).all(axis=1).any()


def test_covered_share() -> None:
    boxes = np.array([[0, 0, 10, 10], [20, 20, 30, 30], [4, 4, 6, 6]], np.float32)
    np.testing.assert_allclose(covered_share(boxes, np.array([5, 0, 15, 10], np.float32)), [0.5, 0, 0.5])


def test_cutout_drops_what_it_hides() -> None:
    sample = Sample(
        np.zeros((64, 64, 3), np.uint8), np.array([[30, 30, 33, 33], [0, 0, 64, 64]], np.float32), np.array([0, 1])
    )
    for seed in range(40):
        changed = cutout(sample, np.random.default_rng(seed))
        assert 1 in changed.class_ids  # no single mask hides 60 % of the whole image
        values = changed.image[changed.image > 0]
        assert values.min() >= 64
        assert values.max() <= 191
        if 0 in changed.class_ids:
            continue
        assert (changed.image[30:33, 30:33] > 0).mean() > 0.6


def test_darknet_crop_moves_boxes_with_the_crop() -> None:
    sample = make_sample(0)
    rules = BoxRules(min_side=0, max_aspect=1e9, min_area_ratio=0)
    crop = draw_crop(np.random.default_rng(2), 48, 64, jitter=0.3, resize=1.5)
    moved = jitter_crop(sample, np.random.default_rng(2), (96, 80), jitter=0.3, resize=1.5, rules=rules)
    fractions = (sample.boxes_xyxy - (crop.left, crop.top) * 2) / ((crop.width, crop.height) * 2)
    expected = np.clip(fractions, 0, 1) * (80, 96, 80, 96)
    kept = ((expected[:, 2:] - expected[:, :2]) > 0).all(axis=1)
    np.testing.assert_allclose(moved.boxes_xyxy, expected[kept], atol=1e-3)


def test_darknet_crop_without_jitter_is_a_stretch() -> None:
    sample = make_sample(0)
    moved = jitter_crop(sample, np.random.default_rng(0), (48, 64), jitter=0, resize=1, rules=BoxRules())
    np.testing.assert_array_equal(moved.image, sample.image)


class FakePipeline:
    """Stands in for albumentations.Compose: mirrors, and drops the first box."""

    seeds: ClassVar[list[int]] = []  # of all copies

    def set_random_seed(self, seed: int) -> None:
        self.seeds.append(seed)

    def __call__(self, *, image: np.ndarray, bboxes: np.ndarray, class_ids: np.ndarray) -> dict[str, Any]:
        mirrored = bboxes[1:].copy()
        mirrored[:, (0, 2)] = image.shape[1] - mirrored[:, (2, 0)]
        return {"image": image[:, ::-1], "bboxes": mirrored.tolist(), "class_ids": class_ids[1:].tolist()}


def test_an_albumentations_pipeline_plugs_in() -> None:
    pipeline = FakePipeline()
    config = AugmentConfig(
        mosaic=0, translate=0, scale=0, hue=0, saturation=0, value=0, flip_horizontal=0, min_side=0, max_aspect=1e9
    )
    plain = Augmenter(make_sample, 5, SIZE, config)(2, np.random.default_rng(0))
    augmenter = Augmenter(make_sample, 5, SIZE, config, from_albumentations(pipeline))
    changed = augmenter(2, np.random.default_rng(0))
    augmenter(2, np.random.default_rng(0))
    np.testing.assert_array_equal(changed.image, plain.image[:, ::-1])
    assert len(changed.boxes_xyxy) == len(plain.boxes_xyxy) - 1
    assert pipeline.seeds[0] == pipeline.seeds[1]


def test_a_transform_must_keep_the_shape() -> None:
    def shrink(sample: Sample, rng: np.random.Generator) -> Sample:
        return Sample(sample.image[:32], sample.boxes_xyxy, sample.class_ids)

    with pytest.raises(UsageError, match="leave resizing"):
        Augmenter(make_sample, 5, SIZE, NO_AUGMENTATION, shrink)(0, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixup": 1.5}, "mixup"),
        ({"scale": 1.0}, "scale"),
        ({"family": "yolo"}, "family"),
        ({"mosaic_centre": "x"}, "mosaic_centre"),
    ],
)
def test_wrong_configuration_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        AugmentConfig(**change)
