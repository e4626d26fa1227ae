"""How sure an average precision is: bootstrap over images, and the paired comparison of two models.

Images, not boxes, are drawn again: boxes of one image are not independent. Every detection is matched once; a resample
only counts it as often as its image was drawn, which gives exactly the figure of the data set with copied images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scaledyolo.errors import UsageError
from scaledyolo.evaluate.arrays import FloatArray
from scaledyolo.evaluate.matching import Interpolation, Matching, average_precision, class_average_precision

# Numbers held at a time for one class: resamples are worked off in runs that fit into the processor's cache.
_CHUNK_NUMBERS = 300_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and the range in which it would move on other images of the same kind."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, slots=True, eq=False)
class ApBootstrap:
    """Confidence intervals of the average precision of one model."""

    level: float  # of the intervals, 0.95 by default
    num_resamples: int
    seed: int
    ap: Interval  # mean over thresholds and classes
    ap50: Interval
    ap75: Interval
    class_ap: tuple[Interval, ...]  # (classes,)


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """How much better the second model is than the first, on the same resamples."""

    first: float
    second: float
    difference: Interval  # second minus first
    p_value: float  # two-sided, by inverting the interval

    @property
    def significant(self) -> bool:
        """Whether p < 0.05."""
        return self.p_value < 0.05


@dataclass(frozen=True, slots=True, eq=False)
class PairedComparison:
    """Two models compared on the same images."""

    level: float
    num_resamples: int
    seed: int
    ap: PairedDifference
    ap50: PairedDifference
    ap75: PairedDifference
    class_ap: tuple[PairedDifference, ...]


def image_resamples(num_images: int, num_resamples: int, seed: int) -> FloatArray:
    """How often each image is drawn in each resample: (resamples, images), every row sums to the number of images."""
    if num_images < 1 or num_resamples < 1:
        raise UsageError(f"a bootstrap needs images and resamples, got {num_images} and {num_resamples}")
    generator = np.random.default_rng(seed)
    return generator.multinomial(num_images, np.full(num_images, 1 / num_images), num_resamples).astype(np.float64)


def resampled_average_precision(
    matching: Matching, image_weights: NDArray[np.floating], interpolation: Interpolation = "101-point"
) -> FloatArray:
    """Average precision (B, T, K) of B data sets in which image i occurs ``image_weights[b, i]`` times."""
    result = np.empty((len(image_weights), len(matching.iou_thresholds), matching.num_classes))
    for class_id, num_detections in enumerate(np.diff(matching.class_starts).tolist()):
        chunk = max(1, _CHUNK_NUMBERS // max(num_detections, 1))
        for start in range(0, len(image_weights), chunk):
            rows = slice(start, start + chunk)
            columns = np.ascontiguousarray(image_weights[rows].T)
            result[rows, :, class_id] = class_average_precision(matching, class_id, columns, interpolation).T
    return result


def resampled_means(matching: Matching, *, num_resamples: int = 1000, seed: int = 0) -> tuple[FloatArray, FloatArray]:
    """AP and AP50 of each resample, two arrays (B,): the draws behind :func:`bootstrap_average_precision`.

    Models that were matched on the same images see the same resamples, so their rows can be compared in pairs.
    """
    weights = image_resamples(matching.num_images, num_resamples, seed)
    samples = resampled_average_precision(matching, weights)
    return _sample_means(samples), _sample_means(samples[:, matching.threshold_index(0.5)])


def bootstrap_average_precision(
    matching: Matching,
    *,
    num_resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    interpolation: Interpolation = "101-point",
) -> ApBootstrap:
    """Confidence intervals of AP, AP50, AP75 and the AP of each class.

    The interval is that of the percentiles of the resamples, moved so that their mean lies on the figure itself: copies
    of images make AP of rare classes rise in every resample, and an uncorrected interval can miss its own figure.
    """
    weights = image_resamples(matching.num_images, num_resamples, seed)
    whole = average_precision(matching, interpolation)
    samples = resampled_average_precision(matching, weights, interpolation)
    at50, at75 = matching.threshold_index(0.5), matching.threshold_index(0.75)
    return ApBootstrap(
        level=level,
        num_resamples=num_resamples,
        seed=seed,
        ap=interval_around(_mean(whole), _sample_means(samples), level),
        ap50=interval_around(_mean(whole[at50]), _sample_means(samples[:, at50]), level),
        ap75=interval_around(_mean(whole[at75]), _sample_means(samples[:, at75]), level),
        class_ap=tuple(
            interval_around(_mean(whole[:, k]), samples[:, :, k].mean(axis=1), level)
            for k in range(matching.num_classes)
        ),
    )


def compare_average_precision(
    first: Matching,
    second: Matching,
    *,
    num_resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    interpolation: Interpolation = "101-point",
) -> PairedComparison:
    """Difference of two models on the same resamples, with intervals and two-sided p-values.

    The p-value is twice the share of resamples whose difference, centred on the measured one, lies on the other side of
    zero: it is below 0.05 where the 95 % interval excludes zero.

    Raises :class:`UsageError` when the two were not matched on the same images, classes and thresholds.
    """
    same = (
        first.num_images == second.num_images
        and first.num_classes == second.num_classes
        and np.array_equal(first.iou_thresholds, second.iou_thresholds)
        and np.array_equal(first.object_image_index, second.object_image_index)
        and np.array_equal(first.object_class_ids, second.object_class_ids)
    )
    if not same:
        raise UsageError("two models can only be compared on the same ground truth and IoU thresholds")
    weights = image_resamples(first.num_images, num_resamples, seed)
    whole = [average_precision(one, interpolation) for one in (first, second)]
    samples = [resampled_average_precision(one, weights, interpolation) for one in (first, second)]
    at50, at75 = first.threshold_index(0.5), first.threshold_index(0.75)

    def difference(thresholds: slice, classes: slice) -> PairedDifference:
        values = [_mean(one[thresholds, classes]) for one in whole]
        means = [_sample_means(one[:, thresholds, classes]) for one in samples]
        return paired_difference(values[0], values[1], means[1] - means[0], level)

    everything = slice(None)
    return PairedComparison(
        level=level,
        num_resamples=num_resamples,
        seed=seed,
        ap=difference(everything, everything),
        ap50=difference(slice(at50, at50 + 1), everything),
        ap75=difference(slice(at75, at75 + 1), everything),
        class_ap=tuple(difference(everything, slice(k, k + 1)) for k in range(first.num_classes)),
    )


def _mean(values: FloatArray) -> float:
    """Mean over what is defined; nan if nothing is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def _sample_means(samples: FloatArray) -> FloatArray:
    """Mean over thresholds and classes (B,) of samples (B, ...); classes without objects in a resample do not count."""
    flat = samples.reshape(len(samples), -1)
    defined = ~np.isnan(flat)
    counts = defined.sum(axis=1)
    means: FloatArray = np.where(defined, flat, 0.0).sum(axis=1) / np.maximum(counts, 1)
    means[counts == 0] = np.nan
    return means


def interval_around(value: float, samples: FloatArray, level: float = 0.95) -> Interval:
    """The range of resampled figures (B,) moved so that their mean lies on ``value``; nan where nothing is defined."""
    defined = samples[~np.isnan(samples)]
    if np.isnan(value) or len(defined) == 0:
        return Interval(value, float("nan"), float("nan"))
    tail = (1 - level) / 2
    low, high = np.quantile(defined - defined.mean(), [tail, 1 - tail]) + value
    return Interval(value, float(max(low, 0.0)), float(min(high, 1.0)))


def paired_difference(first: float, second: float, differences: FloatArray, level: float = 0.95) -> PairedDifference:
    """Two figures and their differences (B,), second minus first, on the same resamples."""
    value = second - first
    defined = differences[~np.isnan(differences)]
    if np.isnan(value) or len(defined) == 0:
        nothing = float("nan")
        return PairedDifference(first, second, Interval(value, nothing, nothing), nothing)
    centred = defined - defined.mean() + value
    tail = (1 - level) / 2
    low, high = np.quantile(centred, [tail, 1 - tail])
    # The measured data set itself counts as one draw, so p is never zero. The allowance is for rounding in the mean.
    opposite = min(np.count_nonzero(centred <= 1e-12), np.count_nonzero(centred >= -1e-12))
    p_value = min(1.0, 2 * (1 + opposite) / (1 + len(centred)))
    return PairedDifference(first, second, Interval(value, float(low), float(high)), p_value)
