"""Anchor boxes for a data set: how well given ones fit, and better ones by k-means and genetic refinement.

Training specification 6.5. Everything is width and height in pixels of the network's input; randomness is passed in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.cluster.vq import kmeans

from scaledyolo.arch.spec import ModelSpec
from scaledyolo.data.dataset import Dataset
from scaledyolo.errors import DataError

Sizes = npt.NDArray[np.float64]

# A label can be learnt if some anchor is within this factor of it on both axes (anchor_t of the recipes).
THRESHOLD = 4.0
# Below this recall the branches compute new anchors.
SUFFICIENT_RECALL = 0.98
_MINIMUM_SIDE = 2.0  # pixels; smaller labels do not take part, and no anchor gets smaller
_KMEANS_RUNS = 30
_MUTATION_PROBABILITY = 0.9
_MUTATION_SIGMA = 0.1
_MUTATION_RANGE = (0.3, 3.0)


@dataclass(frozen=True)
class AnchorFit:
    """How well anchors fit labels. recall: share of labels that some anchor can learn. mean_matches: anchors per label
    within the threshold. fitness: mean of the best ratio of the labels that can be learnt (others count 0)."""

    recall: float
    mean_matches: float
    fitness: float


def label_sizes(dataset: Dataset, size: int) -> Sizes:
    """(m, 2) width and height of all boxes after the long side of their image became ``size`` pixels; no crowds."""
    notes = dataset.annotations
    sides = notes.boxes_xyxy[:, 2:] - notes.boxes_xyxy[:, :2]
    ratio = size / np.maximum(notes.sizes.max(axis=1, initial=1), 1)
    scaled: Sizes = sides * np.repeat(ratio, np.diff(notes.offsets))[:, None]
    return scaled[~notes.crowd]


def best_ratios(sizes_wh: Sizes, anchors_wh: Sizes) -> Sizes:
    """(m, k) how alike label and anchor are: the smaller of min(r, 1 / r) over both axes, 1 for equal sizes."""
    ratio = sizes_wh[:, None, :] / anchors_wh[None, :, :]
    return np.asarray(np.minimum(ratio, 1.0 / ratio).min(axis=2))


def fit_of(sizes_wh: Sizes, anchors_wh: npt.ArrayLike, *, threshold: float = THRESHOLD) -> AnchorFit:
    """How well anchors (k, 2) fit labels (m, 2); labels without a size are ignored."""
    labels = sizes_wh[(sizes_wh > 0).all(axis=1)]
    if len(labels) == 0:
        raise DataError("anchors cannot be judged: the data set has no boxes")
    alike = best_ratios(labels, np.asarray(anchors_wh, np.float64).reshape(-1, 2))
    best = alike.max(axis=1)
    learnable = best > 1.0 / threshold
    return AnchorFit(
        recall=float(learnable.mean()),
        mean_matches=float((alike > 1.0 / threshold).sum(axis=1).mean()),
        fitness=float((best * learnable).mean()),
    )


def kmeans_anchors(sizes_wh: Sizes, count: int, rng: np.random.Generator) -> Sizes:
    """(count, 2) cluster centres of the labels divided by their deviation, sorted by area: the best of 30 k-means runs.

    Raises DataError if there are fewer different labels than anchors.
    """
    labels = _usable(sizes_wh, count)
    deviation = labels.std(axis=0)
    deviation[deviation == 0] = 1.0
    start = np.unique(labels, axis=0)
    # Restarts are ours: scipy's own would need its global randomness, or an argument that changed name in 1.15.
    runs = [
        kmeans(labels / deviation, start[rng.choice(len(start), count, replace=False)] / deviation)
        for _ in range(_KMEANS_RUNS)
    ]
    centres = min(runs, key=lambda run: float(run[1]))[0]
    # An empty cluster vanishes: its place goes to a label drawn at random.
    missing = count - len(centres)
    if missing:
        centres = np.concatenate([centres, start[rng.choice(len(start), missing, replace=False)] / deviation])
    return sort_by_area(centres * deviation)


def refine_anchors(
    sizes_wh: Sizes,
    anchors_wh: npt.ArrayLike,
    rng: np.random.Generator,
    *,
    generations: int = 1000,
    threshold: float = THRESHOLD,
) -> Sizes:
    """Mutate anchors and keep what fits better: factors clip(1 + mask * u * N(0, .1), .3, 3), at least 2 pixels."""
    best = np.asarray(anchors_wh, np.float64).reshape(-1, 2).copy()
    labels = _usable(sizes_wh, 1)
    fitness = fit_of(labels, best, threshold=threshold).fitness
    for _ in range(generations):
        mask = rng.random(best.shape) < _MUTATION_PROBABILITY
        steps = mask * rng.random() * rng.standard_normal(best.shape) * _MUTATION_SIGMA
        candidate = np.maximum(best * np.clip(1.0 + steps, *_MUTATION_RANGE), _MINIMUM_SIDE)
        reached = fit_of(labels, candidate, threshold=threshold).fitness
        if reached > fitness:
            best, fitness = candidate, reached
    return sort_by_area(best)


def propose_anchors(
    sizes_wh: Sizes,
    count: int,
    rng: np.random.Generator,
    *,
    generations: int = 1000,
    threshold: float = THRESHOLD,
    max_labels: int = 20_000,
) -> Sizes:
    """(count, 2) anchors by k-means, then refined; sorted by area.

    The refinement sees at most ``max_labels`` labels drawn at random: its fitness is a mean, and a thousand generations
    over a million labels would take an hour for the same answer.
    """
    labels = _usable(sizes_wh, count)
    if len(labels) > max_labels:
        labels = labels[rng.choice(len(labels), max_labels, replace=False)]
    start = kmeans_anchors(labels, count, rng)
    return refine_anchors(labels, start, rng, generations=generations, threshold=threshold)


@dataclass(frozen=True)
class FittedAnchors:
    """A network with anchors for a data set: at the input size of ``spec``, and how well those before and these fit."""

    spec: ModelSpec
    boxes: int
    before: AnchorFit
    after: AnchorFit

    @property
    def better(self) -> bool:
        """Whether more boxes can be learnt, or as many with anchors that are more like them."""
        return (self.after.recall, self.after.fitness) > (self.before.recall, self.before.fitness)


def fit_anchors(
    spec: ModelSpec, dataset: Dataset, *, threshold: float = THRESHOLD, seed: int = 0, generations: int = 1000
) -> FittedAnchors:
    """Anchors for the boxes of a data set at the input size of a network, rounded to a tenth of a pixel.

    Raises:
        DataError: the data set has fewer boxes of different size than the network has anchors.
    """
    sizes = label_sizes(dataset, spec.size)
    used = anchors_in_use(spec)
    proposed = propose_anchors(
        sizes, len(used), np.random.default_rng(seed), generations=generations, threshold=threshold
    )
    rounded = [(round(float(width), 1), round(float(height), 1)) for width, height in proposed]
    before, after = (fit_of(sizes, anchors, threshold=threshold) for anchors in (used, rounded))
    return FittedAnchors(spec.with_anchors(rounded), len(sizes), before, after)


def anchors_in_use(spec: ModelSpec) -> list[tuple[float, float]]:
    """The anchors that some level of a network has, (width, height) in pixels; a mask may leave some out."""
    return [spec.anchors[index] for mask in spec.masks for index in mask]


def sort_by_area(anchors_wh: npt.ArrayLike) -> Sizes:
    """Anchors (k, 2) from the smallest area to the largest."""
    anchors = np.asarray(anchors_wh, np.float64).reshape(-1, 2)
    return anchors[np.argsort(anchors.prod(axis=1), kind="stable")]


def _usable(sizes_wh: Sizes, count: int) -> Sizes:
    labels = sizes_wh[(sizes_wh >= _MINIMUM_SIDE).all(axis=1)]
    different = len(np.unique(labels, axis=0))
    if different < max(count, 1):
        raise DataError(
            f"{count} anchors need as many boxes of different size with sides of {_MINIMUM_SIDE:g} pixels or more; "
            f"the data set has {different}"
        )
    return labels
