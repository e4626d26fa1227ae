"""Resampled figures are those of data sets with copied images; intervals and comparisons behave."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from scaledyolo.errors import UsageError
from scaledyolo.evaluate.arrays import GroundTruth, Predictions
from scaledyolo.evaluate.bootstrap import (
    bootstrap_average_precision,
    compare_average_precision,
    image_resamples,
    resampled_average_precision,
)
from scaledyolo.evaluate.matching import average_precision, match


def copied(truth: GroundTruth, predictions: Predictions, draws: np.ndarray) -> tuple[GroundTruth, Predictions]:
    """The data set whose image j is a physical copy of image ``draws[j]``."""
    objects = [np.flatnonzero(truth.image_index == i) for i in draws]
    detections = [np.flatnonzero(predictions.image_index == i) for i in draws]
    object_rows, detection_rows = np.concatenate(objects), np.concatenate(detections)
    new_truth = replace(
        truth,
        image_ids=tuple(range(len(draws))),
        image_sizes=truth.image_sizes[draws],
        image_index=np.repeat(np.arange(len(draws)), [len(rows) for rows in objects]),
        boxes_xyxy=truth.boxes_xyxy[object_rows],
        class_ids=truth.class_ids[object_rows],
        crowd=truth.crowd[object_rows],
        areas=truth.areas[object_rows],
    )
    index = np.repeat(np.arange(len(draws)), [len(rows) for rows in detections])
    return new_truth, replace(predictions.select(detection_rows), image_index=index, num_images=len(draws))


@pytest.mark.parametrize("seed", range(4))
def test_weights_equal_copies_of_images_by_pycocotools(scene: Callable, judge: Callable, seed: int) -> None:
    truth, predictions = scene(seed)
    draws = np.random.default_rng(seed).integers(0, truth.num_images, truth.num_images)
    weights = np.bincount(draws, minlength=truth.num_images)[None].astype(float)
    expected = judge(*copied(truth, predictions, draws))[:3]
    samples = resampled_average_precision(match(truth, predictions), weights)[0]
    found = [np.nanmean(samples), np.nanmean(samples[0]), np.nanmean(samples[5])]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


def test_interval_holds_the_figure_and_narrows_with_images(scene: Callable) -> None:
    widths = []
    for num_images in (20, 320):
        matching = match(*scene(0, num_images=num_images, num_classes=3))
        result = bootstrap_average_precision(matching, num_resamples=200)
        assert result.ap.value == pytest.approx(np.nanmean(average_precision(matching)))
        assert result.ap.low < result.ap.value < result.ap.high
        assert np.isnan(result.class_ap[2].value)
        widths.append(result.ap.high - result.ap.low)
    # Sixteen times the images: a quarter of the width, give or take.
    assert 0.15 < widths[1] / widths[0] < 0.4


def test_interval_covers_the_truth_about_as_often_as_promised(scene: Callable) -> None:
    """Draw 60 small data sets from a large one and count how often the 90 % interval holds the large one's figure."""
    truth, predictions = scene(1, num_images=1500, num_classes=2, objects_per_image=3)
    target = np.nanmean(average_precision(match(truth, predictions))[0])
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(60):
        subset = copied(truth, predictions, rng.integers(0, truth.num_images, 80))
        interval = bootstrap_average_precision(match(*subset), num_resamples=150, level=0.9).ap50
        held += interval.low <= target <= interval.high
    assert held >= 46  # below the 0.3 % quantile of a fair 90 % interval: 46 of 60


def test_same_seed_same_result_other_seed_other(scene: Callable) -> None:
    matching = match(*scene(2))
    first, again, other = (bootstrap_average_precision(matching, num_resamples=50, seed=s).ap for s in (5, 5, 6))
    assert first == again
    assert first != other
    assert image_resamples(7, 3, 0).sum(axis=1).tolist() == [7, 7, 7]


def test_a_model_does_not_differ_from_itself(scene: Callable) -> None:
    matching = match(*scene(3))
    comparison = compare_average_precision(matching, matching, num_resamples=100)
    for one in (comparison.ap, comparison.ap50, comparison.ap75):
        assert (one.difference.value, one.difference.low, one.difference.high, one.p_value) == (0, 0, 0, 1)


def test_a_better_model_is_found_better_and_noise_is_not(scene: Callable) -> None:
    truth, predictions = scene(4, num_images=60, false_per_image=10)
    keep = np.isin(predictions.image_index, np.arange(5), invert=True) | (predictions.scores > 0.01)
    good, same, bad = (match(truth, one) for one in (predictions, predictions.select(keep), predictions.above(0.6)))
    much = compare_average_precision(bad, good, num_resamples=300)
    assert much.ap.significant
    assert much.ap.difference.low > 0
    assert much.ap.second - much.ap.first == pytest.approx(much.ap.difference.value)
    assert not compare_average_precision(same, good, num_resamples=300).ap.significant


def test_only_the_same_images_can_be_compared(scene: Callable) -> None:
    with pytest.raises(UsageError, match="same ground truth"):
        compare_average_precision(match(*scene(0)), match(*scene(1)))
    with pytest.raises(UsageError, match="needs images"):
        image_resamples(0, 10, 0)


@pytest.mark.slow
def test_thousand_resamples_take_seconds(scene: Callable) -> None:
    matching = match(
        *scene(0, num_images=328, num_classes=80, objects_per_image=8, detections_per_object=6.0, false_per_image=40)
    )
    start = time.perf_counter()
    bootstrap_average_precision(matching, num_resamples=1000)
    assert time.perf_counter() - start < 20
